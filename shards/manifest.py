"""The manifest of a shard set: what the set holds, where it came from, and its fingerprint.

``manifest.json`` is written last, so a folder without one is not a shard set. It names files by
bare file names only: nothing in it can point outside its folder.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from shards.errors import DamageError, DataError
from shards.files import fingerprint, read_json, write_json_atomic
from shards.layout import Layout

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
"""Of the sets that are built here; they are still written as they were at first."""
FOREIGN_FORMAT_VERSION = 2
"""Of tars made elsewhere: with a layout, names of any kind, and indexes of several members."""
DEFAULT_SAMPLES_PER_SHARD = 4096
ARTICLES = "articles"
IMPRESSIONS = "impressions"
INDEX_RECORD_BYTES = 16
KINDS = (ARTICLES, IMPRESSIONS)
# What the shards of a kind are called: news-000000.tar, impressions-000000.tar.
SHARD_PREFIX = {ARTICLES: "news", IMPRESSIONS: "impressions"}

_SHARD_NAME = re.compile(r"[a-z][a-z0-9]*-[0-9]{6,9}\.tar")
# A bare file name that is not hidden.
_FOREIGN_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.tar")
_MAX_NAME_BYTES = 200
# The files of a column set's cells are called after the shards; this name is taken there.
_TAKEN_NAMES = ("column.tar",)
_HEX64 = re.compile(r"[0-9a-f]{64}")


def shard_name(kind: str, number: int) -> str:
    """Return the file name of shard ``number`` of a set of this kind."""
    return f"{SHARD_PREFIX[kind]}-{number:06d}.tar"


def is_foreign_name(name: str) -> bool:
    """Say whether a tar made elsewhere may be called this in a manifest."""
    return (
        bool(_FOREIGN_NAME.fullmatch(name))
        and len(name.encode("utf-8", "surrogateescape")) <= _MAX_NAME_BYTES
        and name.isprintable()
        and name.lower() not in _TAKEN_NAMES
    )


def check_foreign_name(tar: Path) -> None:
    """Check the name of a tar made elsewhere.

    Raises:
        DataError: If a set cannot use it.
    """
    if not is_foreign_name(tar.name):
        raise DataError(
            f"{tar}: a set cannot name a shard {tar.name!r}; expected a printable file name that"
            f" ends in .tar, is not hidden, has at most {_MAX_NAME_BYTES} bytes, and is not"
            f" {_TAKEN_NAMES[0]}; rename it"
        )


@dataclass(frozen=True)
class ShardInfo:
    """One shard as the manifest lists it."""

    name: str
    """File name of the tar, for example ``news-000000.tar``."""
    samples: int
    bytes: int
    sha256: str
    index_bytes: int | None = None
    """Size of the index, where it does not follow from the number of samples (version 2)."""
    index_sha256: str | None = None
    """What the index must be (version 2): it says which samples count, and has their keys."""

    @property
    def index_size(self) -> int:
        """Size of the shard's index in bytes."""
        return INDEX_RECORD_BYTES * self.samples if self.index_bytes is None else self.index_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as it is written to JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def stem(self) -> str:
        """The name without ``.tar``: what the files of columns are called after."""
        return self.name.removesuffix(".tar")

    @property
    def index_name(self) -> str:
        """File name of the shard's index."""
        return self.stem + ".idx"


@dataclass(frozen=True)
class Manifest:
    """A shard set's manifest.

    The fingerprint covers the format, the kind, every shard's samples and sha256 (with a layout
    also that and the sha256 of the indexes), and the fingerprint of the article set that
    impressions refer to: the data, and not where they came from.
    """

    kind: str
    """``articles`` or ``impressions``."""
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
    """How samples of tars made elsewhere are read (version 2)."""

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of everything that decides what the samples are."""
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
        """Whether the impressions say what was clicked; true where the manifest does not say."""
        return bool(self.source.get("labelled", True))

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as it is written to JSON, fingerprint included."""
        layout = {} if self.layout is None else {"layout": self.layout.to_dict()}
        return {
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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``: from now on the folder is a shard set."""
    write_json_atomic(folder / MANIFEST_NAME, manifest.to_dict())


def has_manifest(folder: Path) -> bool:
    """Say whether ``folder`` holds a manifest."""
    return (folder / MANIFEST_NAME).is_file()


def check_not_foreign(folder: Path) -> None:
    """See that a build which may replace the set in ``folder`` deletes nobody's own tars.

    Raises:
        DataError: If the set there was made of tars made elsewhere.
    """
    if not has_manifest(folder):
        return
    try:
        values = read_json(folder / MANIFEST_NAME)
    except DamageError:
        return  # what cannot be read is just what a forced build is to replace
    if isinstance(values, Mapping) and values.get("layout") is not None:
        raise DataError(
            f"{folder} holds tars made elsewhere, which a build would delete; choose another folder"
        )


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the shard set in ``folder``.

    Raises:
        DataError: If the folder is missing, is not a shard set, or has a format of another version.
        DamageError: If the manifest is damaged, was changed by hand, or names a file outside.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise DataError(f"there is no shard set at {folder}: no such folder")
    if not path.is_file():
        raise DataError(
            f"{folder} is not a shard set: it has no {MANIFEST_NAME} (a build that was interrupted"
            " leaves none; run `tnr shards build` again)"
        )
    data = read_json(path)
    if not isinstance(data, Mapping):
        raise DamageError(f"{path}: expected a JSON object")
    version = data.get("format_version")
    if version not in (FORMAT_VERSION, FOREIGN_FORMAT_VERSION) or isinstance(version, bool):
        raise DataError(
            f"{path}: format_version is {version!r}, this version reads {FORMAT_VERSION} and"
            f" {FOREIGN_FORMAT_VERSION}; build the set again, or update tiny-newsrec"
        )
    manifest = _parse(data, path)
    if data.get("fingerprint") != manifest.fingerprint:
        raise DamageError(
            f"{path}: the fingerprint does not fit the shards it lists (stored"
            f" {str(data.get('fingerprint'))[:12]}, computed {manifest.fingerprint[:12]}):"
            " the manifest is damaged or was edited; build the set again"
        )
    return manifest


def _parse(data: Mapping[str, Any], path: Path) -> Manifest:
    kind = data.get("kind")
    if kind not in KINDS:
        raise DamageError(f"{path}: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    shards = data.get("shards")
    if not isinstance(shards, Sequence) or isinstance(shards, str):
        raise DamageError(f"{path}: shards is not a list")
    version = data["format_version"]
    parsed = tuple(_parse_shard(entry, path, version) for entry in shards)
    names = [shard.name for shard in parsed]
    if len(set(names)) != len(names):
        raise DamageError(f"{path}: the same shard is listed twice")
    articles = data.get("articles_fingerprint")
    if articles is not None and not (isinstance(articles, str) and _HEX64.fullmatch(articles)):
        raise DamageError(f"{path}: articles_fingerprint is not a sha256")
    fields = data.get("fields")
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise DamageError(f"{path}: fields is not a list of names")
    return Manifest(
        kind=kind,
        shards=parsed,
        fields=tuple(fields),
        source=_mapping(data, "source", path),
        counts=_counts(data, "counts", path),
        refused=_counts(data, "refused", path),
        articles_fingerprint=articles,
        format_version=version,
        layout=_parse_layout(data, path) if version == FOREIGN_FORMAT_VERSION else None,
    )


def _parse_layout(data: Mapping[str, Any], path: Path) -> Layout:
    try:
        return Layout.from_dict(data.get("layout"))
    except ValueError as error:
        raise DamageError(f"{path}: {error}") from error


def _parse_shard(entry: Any, path: Path, version: int) -> ShardInfo:
    if not isinstance(entry, Mapping):
        raise DamageError(f"{path}: a shard is not an object")
    name = entry.get("name")
    foreign = version == FOREIGN_FORMAT_VERSION
    if not isinstance(name, str) or not (
        is_foreign_name(name) if foreign else _SHARD_NAME.fullmatch(name)
    ):
        raise DamageError(
            f"{path}: shard name {name!r} is not of the form news-000000.tar; a manifest may name"
            " only files of its own folder"
        )
    samples, size, digest = entry.get("samples"), entry.get("bytes"), entry.get("sha256")
    if not (_is_count(samples) and _is_count(size)):
        raise DamageError(f"{path}: {name}: samples and bytes must be whole numbers, 0 or more")
    if not (isinstance(digest, str) and _HEX64.fullmatch(digest)):
        raise DamageError(f"{path}: {name}: sha256 is not a sha256")
    shard = ShardInfo(name, int(samples), int(size), digest)  # type: ignore[arg-type]
    if not foreign:
        return shard
    index_bytes, index_digest = entry.get("index_bytes"), entry.get("index_sha256")
    if not (_is_count(index_bytes) and isinstance(index_digest, str)):
        raise DamageError(f"{path}: {name}: index_bytes or index_sha256 is missing")
    return replace(shard, index_bytes=index_bytes, index_sha256=index_digest)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _mapping(data: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = data.get(name, {})
    if not isinstance(value, dict):
        raise DamageError(f"{path}: {name} is not an object")
    return value


def _counts(data: Mapping[str, Any], name: str, path: Path) -> dict[str, int]:
    value = _mapping(data, name, path)
    if not all(_is_count(count) for count in value.values()):
        raise DamageError(f"{path}: {name} must hold whole numbers, 0 or more")
    return value
