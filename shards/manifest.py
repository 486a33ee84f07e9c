"""Read and write the manifest of a shard set: content, source and fingerprint.

``manifest.json`` is written last, so a folder without one is not a shard set. It names files by
bare file names only, so no entry can point outside its folder.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec

from shards.errors import DamageError, DataError
from shards.files import (
    MAX_JSON_BYTES,
    did_you_mean,
    fingerprint,
    parse_json,
    read_bytes,
    read_json,
    write_json_atomic,
)
from shards.layout import Layout
from shards.set_kinds import KINDS, check_kind, kind_named

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
"""Version of sets built by this package; it has not changed since the first release."""
FOREIGN_FORMAT_VERSION = 2
"""Version for tars made elsewhere: with a layout, any names, and indexes of several members."""
DEFAULT_SAMPLES_PER_SHARD = 4096
INDEX_RECORD_BYTES = 16

_SHARD_NAME = re.compile(r"[a-z][a-z0-9]*-[0-9]{6,9}\.tar")
# A bare file name that is not hidden.
_FOREIGN_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.tar")
_MAX_NAME_BYTES = 200
# The files of a column set's cells are named after the shards; this name would collide.
_TAKEN_NAMES = ("column.tar",)
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


def shard_name(kind: str, number: int) -> str:
    """Return the file name of shard ``number`` of a set of this kind."""
    return f"{kind_named(kind).prefix}-{number:06d}.tar"


def is_foreign_name(name: str) -> bool:
    """Tell whether a manifest may list a tar made elsewhere under this name."""
    return (
        bool(_FOREIGN_NAME.fullmatch(name))
        and len(name.encode("utf-8", "surrogateescape")) <= _MAX_NAME_BYTES
        and name.isprintable()
        and name.lower() not in _TAKEN_NAMES
    )


def check_foreign_name(tar: Path) -> None:
    """Check the name of a tar made elsewhere.

    Raises:
        DataError: A set cannot use the name.
    """
    if not is_foreign_name(tar.name):
        raise DataError(
            f"{tar}: a set cannot name a shard {tar.name!r}; expected a printable file name that"
            f" ends in .tar, is not hidden, has at most {_MAX_NAME_BYTES} bytes, and is not"
            f" {_TAKEN_NAMES[0]}; rename it"
        )


@dataclass(frozen=True)
class ShardInfo:
    """One shard's entry in the manifest."""

    name: str
    """File name of the tar, for example ``news-000000.tar``."""
    samples: Count
    bytes: Count
    sha256: Sha256
    index_bytes: Count | None = None
    """Size of the index, if it does not follow from the number of samples (version 2)."""
    index_sha256: Sha256 | None = None
    """Expected hash of the index (version 2), which decides the samples and holds their keys."""

    @property
    def index_size(self) -> int:
        """Size of the shard's index in bytes."""
        return INDEX_RECORD_BYTES * self.samples if self.index_bytes is None else self.index_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the entry's JSON content."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def stem(self) -> str:
        """The name without ``.tar``, which the files of columns share."""
        return self.name.removesuffix(".tar")

    @property
    def index_name(self) -> str:
        """File name of the shard's index."""
        return self.stem + ".idx"


@dataclass(frozen=True)
class Manifest:
    """A shard set's manifest.

    The fingerprint identifies the data, independent of their source. It covers the format, the
    kind, every shard's samples and sha256 (with a layout, also the layout and the sha256 of the
    indexes), and the fingerprint of the article set whose rows the samples name.
    """

    kind: str
    """A name in :data:`shards.set_kinds.KINDS`."""
    shards: tuple[ShardInfo, ...]
    fields: tuple[str, ...]
    """The fields that occur in the samples, sorted."""
    source: dict[str, Any] = field(default_factory=dict)
    """Inputs and options of the build; ``labelled`` in an impression set."""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows read, written, refused, repeated, without a body, and so on."""
    refused: dict[str, int] = field(default_factory=dict)
    """Refused rows by reason; each is listed in ``refused.jsonl``."""
    articles_fingerprint: str | None = None
    format_version: int = FORMAT_VERSION
    layout: Layout | None = None
    """How to read the samples of tars made elsewhere (version 2)."""

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of everything that determines the samples."""
        parts: dict[str, Any] = {
            "format_version": self.format_version,
            "kind": self.kind,
            "shards": [[shard.samples, shard.sha256] for shard in self.shards],
            "articles_fingerprint": self.articles_fingerprint,
        }
        if self.layout is not None:
            parts["layout"] = self.layout.to_dict()
            parts["shards"] = [[s.samples, s.sha256, s.index_sha256] for s in self.shards]
        return fingerprint(parts)

    @property
    def num_rows(self) -> int:
        """The number of samples of the whole set."""
        return sum(shard.samples for shard in self.shards)

    @property
    def labelled(self) -> bool:
        """Whether the impressions have labels; true if the manifest has no entry."""
        return bool(self.source.get("labelled", True))

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's JSON content, including fingerprint and checksum."""
        layout = {} if self.layout is None else {"layout": self.layout.to_dict()}
        values = {
            "format_version": self.format_version,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "articles_fingerprint": self.articles_fingerprint,
            "samples": self.num_rows,
            "fields": list(self.fields),
            "counts": dict(self.counts),
            "refused": dict(self.refused),
            "source": self.source,
            **layout,
            "shards": [shard.to_dict() for shard in self.shards],
        }
        return values | {"checksum": fingerprint(values)}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, which makes the folder a shard set."""
    write_json_atomic(folder / MANIFEST_NAME, manifest.to_dict())


def has_manifest(folder: Path) -> bool:
    """Tell whether ``folder`` holds a manifest."""
    return (folder / MANIFEST_NAME).is_file()


def check_not_foreign(folder: Path) -> None:
    """Check that a build in ``folder`` would replace no set that it cannot know as its own.

    Raises:
        DataError: The set was made from tars made elsewhere, or its kind is unknown.
    """
    if not has_manifest(folder):
        return
    try:
        values = read_json(folder / MANIFEST_NAME)
    except DamageError:
        return  # a forced build may replace an unreadable manifest
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if isinstance(kind, str) and kind not in KINDS:
        raise DataError(
            f"{folder} holds a set of kind {kind!r}, which is unknown (known are "
            f"{', '.join(KINDS)}); choose another folder, or remove it"
        )
    if isinstance(values, Mapping) and values.get("layout") is not None:
        raise DataError(
            f"{folder} holds tars made elsewhere, which a build would delete; choose another folder"
        )


@dataclass(frozen=True)
class _Version:
    format_version: Any = None


@dataclass(frozen=True)
class _Stored:
    """The fields of ``manifest.json``; layouts are parsed by their own class."""

    format_version: int
    kind: str
    fingerprint: Sha256
    shards: tuple[ShardInfo, ...]
    fields: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...]
    samples: Count | None = None
    articles_fingerprint: Sha256 | None = None
    source: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = field(default_factory=dict)
    refused: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = field(default_factory=dict)
    layout: Any = None
    checksum: Sha256 | None = None
    """Checksum of all other entries; older manifests have no checksum."""


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the shard set in ``folder``.

    Raises:
        DataError: The folder is missing, is not a shard set, or has another format version.
        DamageError: The manifest is damaged, was edited, or names a file outside its folder.
    """
    path = folder / MANIFEST_NAME
    if folder.is_file():
        raise DataError(
            f"{folder} is a file, not a shard set; build a set from it first: tnr shards build"
            f" --articles {folder} --out FOLDER (for a click log: --clicks)"
        )
    if not folder.is_dir():
        raise DataError(f"there is no shard set at {folder}: no such folder{did_you_mean(folder)}")
    if not path.exists():
        raise DataError(
            f"{folder} is not a shard set: it has no {MANIFEST_NAME} (an interrupted build leaves"
            " none; run `tnr shards build` again)"
        )
    data = read_bytes(path, limit=MAX_JSON_BYTES)
    version = parse_json(data, _Version, where=path).format_version
    if version not in (FORMAT_VERSION, FOREIGN_FORMAT_VERSION) or isinstance(version, bool):
        raise DataError(
            f"{path}: format_version is {version!r}, this version reads {FORMAT_VERSION} and"
            f" {FOREIGN_FORMAT_VERSION}; build the set again, or update tiny-newsrec"
        )
    stored = parse_json(data, _Stored, where=path)
    manifest = _checked(stored, path)
    if stored.fingerprint != manifest.fingerprint:
        raise DamageError(
            f"{path}: the fingerprint does not fit the shards it lists (stored"
            f" {stored.fingerprint[:12]}, computed {manifest.fingerprint[:12]}):"
            " the manifest is damaged or was edited; build the set again"
        )
    if stored.samples not in (None, manifest.num_rows):
        raise DamageError(
            f"{path}: samples is {stored.samples}, its shards have {manifest.num_rows} together:"
            " the manifest is damaged or was edited; build the set again"
        )
    _check_sum(data, stored.checksum, path)
    return manifest


def _checked(stored: _Stored, path: Path) -> Manifest:
    """Check what the types cannot express, and return the manifest."""
    foreign = stored.format_version == FOREIGN_FORMAT_VERSION
    names = [shard.name for shard in stored.shards]
    for shard in stored.shards:
        if not (is_foreign_name if foreign else _SHARD_NAME.fullmatch)(shard.name):
            raise DamageError(
                f"{path}: shard name {shard.name!r} is not of the form news-000000.tar; a manifest"
                " may name only files of its own folder"
            )
        if foreign != (shard.index_bytes is not None and shard.index_sha256 is not None):
            what = "index_bytes or index_sha256 is missing" if foreign else "it has index_bytes"
            raise DamageError(f"{path}: {shard.name}: {what}")
    if len(set(names)) != len(names):
        raise DamageError(f"{path}: the same shard is listed twice")
    try:
        check_kind(stored.kind)
        layout = Layout.from_dict(stored.layout) if foreign else None
    except ValueError as error:
        raise DamageError(f"{path}: {error}") from error
    return Manifest(
        kind=stored.kind,
        shards=stored.shards,
        fields=stored.fields,
        source=stored.source,
        counts=stored.counts,
        refused=stored.refused,
        articles_fingerprint=stored.articles_fingerprint,
        format_version=stored.format_version,
        layout=layout,
    )


def _check_sum(data: bytes, checksum: str | None, path: Path) -> None:
    """Compare the checksum; an older manifest has neither a checksum nor newer entries."""
    values = parse_json(data, dict[str, Any], where=path)
    if "checksum" not in values:
        unknown = values.keys() - {field.name for field in fields(_Stored)}
        if unknown:
            raise DamageError(
                f"{path} was edited: it has no checksum, but has entries that only versions with a"
                f" checksum write: {', '.join(sorted(map(repr, unknown)))}; build the set again"
            )
        return
    del values["checksum"]
    try:
        found = fingerprint(values)
    except RecursionError as error:
        raise DamageError(f"{path} is damaged or was edited: it is nested too deeply") from error
    if found != checksum:
        raise DamageError(
            f"{path} was edited: its checksum is {found[:12]}, but it says {str(checksum)[:12]};"
            " restore the file, or build the set again"
        )
