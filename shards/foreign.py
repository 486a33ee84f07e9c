"""Make shard sets of WebDataset tars made elsewhere, without changing the tars.

Manifest and indexes are written beside the tars, or in another folder with links to the tars.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from shards.errors import DamageError, DataError, UsageError
from shards.fields import ArticleFields
from shards.files import (
    atomic_file,
    clear_leftovers,
    fsync_folder,
    open_regular,
    temporary_name,
)
from shards.foreign_scan import ScannedShard, Scanner, Tally
from shards.heads import HEAD_BYTES, packing
from shards.index import MEMBER_INDEX_MAGIC
from shards.layout_guess import guess_layout, guessed_parts
from shards.manifest import (
    FOREIGN_FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    check_foreign_name,
    has_manifest,
    read_manifest,
    write_manifest,
)
from shards.progress import Progress
from shards.reader import ShardSet
from shards.set_kinds.articles import Articles
from shards.sources import DEFAULT_MAX_REFUSED, check_is_file

REFUSED_NAME = "refused.jsonl"
_PACKED = (".gz", ".tgz", ".zst", ".xz", ".bz2", ".lz4", ".lzma")
_UNPACK = {
    "gzip": ("gunzip", ".gz"),
    "zstd": ("unzstd", ".zst"),
    "xz": ("unxz", ".xz"),
    "bzip2": ("bunzip2", ".bz2"),
    "lz4": ("unlz4", ".lz4"),
    "lzma": ("unlzma", ".lzma"),
}


def index_tars(
    inputs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    members: Mapping[str, str] | None = None,
    fields: ArticleFields | None = None,
    max_refused: float = DEFAULT_MAX_REFUSED,
    force: bool = False,
) -> ShardSet:
    """Make an article set of WebDataset tars made elsewhere.

    Args:
        inputs: A folder of tars, or tars; their names in alphabetical order are the set's order.
        out: Folder for manifest, indexes and links to the tars; None puts manifest and indexes
            beside the tars.
        members: Maps ``json`` or an article field to the suffix of its members; an empty mapping is
            guessed.
        fields: Paths of article fields in the JSON members, if they differ from the fields' names.
        max_refused: Largest share of samples, 0 to 1, that may be refused.
        force: Replace a set that was indexed there before.

    Raises:
        UsageError: An option is wrong.
        DataError: There are no tars, they are compressed, ``out`` already holds a set, or too many
            samples are refused.
        DamageError: A tar is damaged; the message names the offset.
    """
    if not 0 <= max_refused <= 1:
        raise UsageError(f"--max-refused is {max_refused:g}; expected a share from 0 to 1")
    tars = find_tars([Path(path) for path in inputs])
    folder = _folder(tars, None if out is None else Path(out), force)
    members = members or {}
    fields = fields or ArticleFields()
    layout = guess_layout(tars, members, fields)
    scanner = Scanner(layout, guessed_parts(members, fields))
    with Progress(sum(tar.stat().st_size for tar in tars), "index", "B") as bar:
        shards = []
        for tar in tars:
            shards.append(scanner.scan(tar))
            bar.update(shards[-1].info.bytes)
    scanner.tally.check(max_refused)
    scanner.decoder.check_all_seen(tars[0].parent.name)
    try:
        _publish(folder, shards, scanner, tars if out is not None else [])
    except OSError as error:
        raise DataError(
            f"cannot write to {folder}: {error.strerror or error}; if the tars' folder is"
            " read-only, give --out FOLDER"
        ) from error
    return ShardSet.open(folder)


def find_tars(inputs: Sequence[Path]) -> list[Path]:
    """Find the tars of the inputs, sorted by name.

    Raises:
        DataError: There are no tars, one is compressed, or one has an unsuitable name.
    """
    tars: list[Path] = []
    for path in inputs:
        if path.is_dir():
            tars += _tars_of(path)
        elif path.exists():
            check_is_file(path)
            tars.append(path)
        else:
            raise DataError(f"{path} does not exist; expected a folder of tars, or tars")
    by_name: dict[str, Path] = {}
    for tar in tars:
        _check_packed(tar)
        check_foreign_name(tar)
        if by_name.setdefault(tar.name, tar) != tar:
            raise DataError(
                f"{by_name[tar.name]} and {tar} have the same name, but shards of a set need unique"
                " names; index them into two sets, or rename one"
            )
    return [by_name[name] for name in sorted(by_name)]


def _tars_of(folder: Path) -> list[Path]:
    names = {path.name for path in folder.iterdir()}
    if any(name.startswith(".building-") for name in names):
        raise DataError(f"{folder} holds an unfinished `tnr shards build`; run that command again")
    tars = [name for name in sorted(names) if name.endswith(".tar") and name[0] != "."]
    for name in sorted(names):
        stem = name.lower().removesuffix(".tgz").split(".tar")[0]
        packed = name.lower().endswith((".tgz", *(f".tar{suffix}" for suffix in _PACKED)))
        if packed and stem + ".tar" not in {other.lower() for other in tars}:
            _check_packed(folder / name)
    if not tars:
        raise DataError(
            f"{folder} is neither a shard set nor a folder of tars: it has no {MANIFEST_NAME} and"
            " no .tar files"
        )
    return [folder / name for name in tars]


def _check_packed(path: Path) -> None:
    with open_regular(path) as file:
        found = packing(file.read(HEAD_BYTES))
    if found is None or found[0] == "tar":
        return
    kind = found[0]
    unpack, suffix = _UNPACK.get(kind, ("", ""))
    command = f"{unpack} {path}"
    if not path.name.endswith(_PACKED):
        command = f"mv {path} {path}{suffix} && {command}{suffix}"
    raise DataError(
        f"{path} is compressed ({kind}), so it cannot be read from the middle: neither single"
        " samples nor a resumed run could be read; "
        + (f"run `{command}` first" if unpack else "unpack it first")
    )


def _folder(tars: Sequence[Path], out: Path | None, force: bool) -> Path:
    """Return the folder of manifest and indexes, after checking that it holds no other files."""
    parents = {tar.parent.resolve() for tar in tars}
    folder = out if out is not None else tars[0].parent
    if out is None:
        others = {path.name for path in folder.glob("*.tar")} - {tar.name for tar in tars}
        if len(parents) > 1 or others:
            raise UsageError(
                "the given tars are not all the tars of one folder; give --out FOLDER for a"
                " set of their own"
            )
    elif folder.resolve() in parents:
        raise UsageError(f"--out {out} is the folder of the tars; omit it to index them there")
    if has_manifest(folder) and not force:
        raise DataError(
            f"{folder} already is a shard set; choose another folder, or give --force to index it"
            " anew"
        )
    for tar in tars:
        index = folder / f"{tar.stem}.idx"
        if index.exists() and not _is_ours(index) and not force:
            raise DataError(
                f"{index} exists and was not made here; give --out FOLDER to keep it, or"
                " --force to replace it"
            )
    return folder


def _is_ours(index: Path) -> bool:
    with index.open("rb") as file:
        return file.read(len(MEMBER_INDEX_MAGIC)) == MEMBER_INDEX_MAGIC


def _publish(
    folder: Path, shards: Sequence[ScannedShard], scanner: Scanner, linked: Sequence[Path]
) -> None:
    """Write all files, the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    for link in folder.glob(".*.tar.tmp-*"):
        if link.is_symlink():
            link.unlink(missing_ok=True)
    _remove_former(folder, {shard.info.name for shard in shards})
    # Until the new manifest is written, the folder is not a shard set.
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for tar in linked:
        _link(folder / tar.name, tar.resolve())
    for shard in shards:
        with atomic_file(folder / shard.info.index_name) as file:
            file.write(shard.index)
    tally = scanner.tally
    _write_report(folder, tally)
    manifest = Manifest(
        kind=Articles.name,
        shards=tuple(shard.info for shard in shards),
        fields=tuple(sorted(tally.fields)),
        source={"indexed": True, "guessed": sorted(scanner.guessed)},
        counts=dict(sorted(tally.counts.items())),
        refused=tally.reasons,
        format_version=FOREIGN_FORMAT_VERSION,
        layout=scanner.layout,
    )
    write_manifest(folder, manifest)


def _remove_former(folder: Path, kept: set[str]) -> None:
    """Remove the replaced set's links and indexes of tars that the new set lacks."""
    try:
        former = read_manifest(folder) if has_manifest(folder) else None
    except DamageError:
        return  # the former content is unknown; `tnr shards verify` names leftovers
    if former is None or former.layout is None:
        return
    for shard in former.shards:
        if shard.name not in kept:
            (folder / shard.index_name).unlink(missing_ok=True)
            if (folder / shard.name).is_symlink():
                (folder / shard.name).unlink()


def _link(link: Path, tar: Path) -> None:
    if link.exists() and not link.is_symlink():
        raise DataError(f"{link} exists and is not a link; choose another --out")
    temporary = temporary_name(link)
    temporary.symlink_to(tar)
    temporary.replace(link)
    fsync_folder(link.parent)


def _write_report(folder: Path, tally: Tally) -> None:
    path = folder / REFUSED_NAME
    if not tally.refusals:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path, "w") as file:
        for refusal in tally.refusals:
            file.write(json.dumps(asdict(refusal)) + "\n")
