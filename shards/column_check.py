"""Check column sets: every byte against the commit records, every value against the column's kind.

Checksums tell whether the bytes are the written ones. The kind tells whether this project could
have written them: floats are finite, offsets rise, token ids are in the vocabulary, and click
columns agree with the samples.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from shards.cell_tensors import OFFSETS, VALUES, CellTensors, unlike
from shards.cells import Cell, check_record, open_cell, record_path
from shards.click_cells import CLICKS, UserNumbers, shard_tensors
from shards.column_extras import tokenizer_problem
from shards.column_info import (
    COLUMN_FILE,
    TOKENIZER_FOLDER,
    TOKENS,
    ColumnInfo,
    differing_fields,
    read_info,
    removal_command,
)
from shards.column_kinds import kind_of
from shards.column_reader import ColumnReader
from shards.errors import DamageError, DataError
from shards.manifest import ShardInfo
from shards.ragged import row_of_value
from shards.reader import ShardSet
from shards.tokenize import SKIPPED, made_from
from shards.tokenizer import load_tokenizer, tokenizer_facts
from shards.tokens import TokenSource, tokenizer_remedy


def verify_columns(reader: ColumnReader) -> list[str]:
    """Read a column set and check it against its commit records, also in the cache.

    Returns:
        One line for every damaged cell, with file, tensor and remedy; an empty list if there is no
        damage. Missing cells (a reader has none) are not damage, unless they have a commit record.
    """
    info = ColumnInfo(reader.folder, reader.name, reader.made_from, reader.fingerprint)
    problems = list(_column_problems(reader.shard_set, info))
    for cell in reader.mirror_cells().values():
        if damaged := cell.damaged_tensors():
            problems.append(
                f"{cell.url}: the checksum of {', '.join(damaged)} in the cache {cell.folder} is "
                "not the one of its commit record; remove that folder"
            )
    return problems


def verify_column_folders(shard_set: ShardSet) -> tuple[list[str], list[str]]:
    """Check every column set beside a shard set, including incomplete ones.

    Returns:
        (problems, intact): one line for every damaged cell or unreadable column set, and the names
        of the intact folders, with the number of cells if some are missing.
    """
    problems: list[str] = []
    intact: list[str] = []
    folders = sorted(shard_set.columns_dir.iterdir()) if shard_set.columns_dir.is_dir() else []
    for folder in folders:
        if folder.name.startswith("."):  # a system folder, or a column that is being removed
            continue
        try:
            info = read_info(folder)
        except DataError as error:
            problems.append(str(error))
            continue
        if info.made_from.get("shard_set") != shard_set.fingerprint:
            problems.append(
                f"{folder}: made from another version of the set; run "
                f"`{removal_command(shard_set, folder)}`"
            )
            continue
        found = list(_column_problems(shard_set, info))
        problems += found
        if not found:
            shards = shard_set.manifest.shards
            there = sum(record_path(folder, shard).exists() for shard in shards)
            part = "" if there == len(shards) else f" ({there} of {len(shards)} cells)"
            intact.append(folder.name + part)
    return problems, intact


def _column_problems(shard_set: ShardSet, info: ColumnInfo) -> Iterator[str]:
    kind = kind_of(info.name)
    repair = kind.repair(shard_set, info.made_from)
    source = None
    try:
        if info.name == TOKENS:
            source = TokenSource.read(info.made_from, info.folder)
            yield from _tokenizer_problems(shard_set, info, source)
        shards = shard_set.manifest.shards
        if any(record_path(info.folder, one).exists() for one in shards):
            kind.check_folder(info.folder)
    except DamageError as error:
        yield f"{error}; run `{repair}`"
    users: UserNumbers | None = UserNumbers()
    alike: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    for number, shard in enumerate(shard_set.manifest.shards):
        if not record_path(info.folder, shard).exists():
            users = None  # the column is being filled
            continue
        try:
            cell = _whole_cell(info, shard, repair)
            if (problem := unlike(cell.places, alike)) is not None:
                raise DamageError(f"{cell.path}: {problem}; {cell.remedy}")
            alike |= {name: (place.dtype, place.shape[1:]) for name, place in cell.places.items()}
            _check_values(cell)
            if (problem := kind.wrong_tensor(info.made_from, alike)) is not None:
                raise DamageError(f"{cell.path}: {problem}; {cell.remedy}")
            if source is not None:
                _check_tokens(cell, source)
            if info.name == CLICKS:
                known, users = users, None  # until a shard cannot be read
                _check_clicks(cell, shard_set, number, known)
                users = known
        except DataError as error:
            yield str(error) if repair in str(error) else f"{error}; run `{repair}`"


def _tokenizer_problems(
    shard_set: ShardSet, info: ColumnInfo, source: TokenSource
) -> Iterator[str]:
    problem, there = tokenizer_problem(info.folder), info.folder / TOKENIZER_FOLDER
    if problem is None:
        try:
            facts = tokenizer_facts(load_tokenizer(there))
        except DataError as error:
            problem = str(error)
        else:
            if facts.sha256 == source.tokenizer_sha256:
                yield from _edited_entries(info, made_from(facts, source.limits))
                return
            problem = f"{there} is not the tokenizer that made the ids"
    yield f"{problem}; {tokenizer_remedy(shard_set, info.folder, source.limits)}"


def _edited_entries(info: ColumnInfo, expected: Mapping[str, Any]) -> Iterator[str]:
    """Describe entries of a token column's ``made_from`` that differ from its tokenizer."""
    stored = {name: value for name, value in info.made_from.items() if name != "shard_set"}
    if differing := differing_fields(stored, expected):
        yield (
            f"{info.folder / COLUMN_FILE} was edited: {'; '.join(differing)}, according to the "
            f"tokenizer beside it; remove {info.folder} and run `tnr shards tokenize` again"
        )


def _whole_cell(info: ColumnInfo, shard: ShardInfo, repair: str) -> Cell:
    """Open a cell, and check that its bytes are the written ones.

    Raises:
        DataError: The bytes have changed.
    """
    cell = open_cell(info.folder, info.fingerprint, shard, check=False, repair=repair)
    try:
        record = check_record(info.folder, info.fingerprint, shard)
    except DataError as error:
        raise DamageError(
            f"{record_path(info.folder, shard)}: this commit record and the data file beside it do "
            f"not belong together ({error})"
        ) from error
    if cell is None:
        raise DamageError(f"{record_path(info.folder, shard)} is being written")
    if damaged := cell.damaged_tensors():
        raise DamageError(
            f"{cell.path}: the checksum of {', '.join(damaged)} is not the one of its commit "
            f"record; {cell.remedy}"
        )
    cell.check_digest(record)
    return cell


def _check_values(cell: Cell) -> None:
    """Check that offsets rise and that floats are finite.

    Raises:
        DamageError: The offsets or floats are wrong; the message names the rows.
    """
    for name in cell.places:
        array = cell.array(name)  # this also checks the offsets
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        bad = np.unique(np.nonzero(~np.isfinite(array))[0])
        if name.endswith(VALUES):
            bad = np.unique(row_of_value(cell.array(name.removesuffix(VALUES) + OFFSETS), bad))
        raise DamageError(
            f"{cell.path}: {name} is not finite in {len(bad)} rows, the first is row {bad[0]} of "
            f"the shard; {cell.remedy}"
        )


def _check_tokens(cell: Cell, source: TokenSource) -> None:
    """Check that texts are stored, keep their length limits, and have valid ids.

    Raises:
        DamageError: A text fails a check.
    """
    special = len(source.prefix_ids) + len(source.suffix_ids)
    skipped = cell.array(SKIPPED) if SKIPPED in cell.places else np.bool_(False)
    if skipped.dtype != np.bool_:
        raise DamageError(f"{cell.path}: {SKIPPED} is {skipped.dtype}, not bool; {cell.remedy}")
    for field, limit in source.limits.items():
        values, offsets = cell.tensors[field + VALUES], cell.tensors[field + OFFSETS]
        largest = values.max(initial=0)
        if values.dtype.kind != "u" or values.ndim != 1 or largest >= source.vocab_size:
            raise DamageError(
                f"{cell.path}: {field} holds {values.dtype} up to {largest}, expected token ids "
                f"below {source.vocab_size}; {cell.remedy}"
            )
        if len(bad := np.flatnonzero(skipped & (np.diff(offsets) > 0))):
            raise DamageError(
                f"{cell.path}: row {bad[0]} of the shard is marked as skipped, but has a {field}; "
                f"{cell.remedy}"
            )
        if (longest := int(np.diff(offsets).max(initial=0)) + special) > limit:
            raise DamageError(
                f"{cell.path}: a text of {field} has {longest} tokens, expected at most {limit}; "
                f"{cell.remedy}"
            )


def _check_clicks(cell: Cell, shard_set: ShardSet, number: int, users: UserNumbers | None) -> None:
    """Check that a cell of clicks agrees with the samples of its shard.

    Args:
        cell: The cell.
        shard_set: The impression set.
        number: Number of the shard.
        users: Users of all earlier shards; None if they are unknown, and not compared.

    Raises:
        DamageError: The cell and the samples differ.
        DataError: A sample cannot be read.
    """
    expected = shard_tensors(shard_set, number, users or UserNumbers())
    for name in sorted({*expected, *cell.places}):
        if name == "user" and users is None and name in cell.places:
            continue
        stored = CellTensors(cell)[name] if name in cell.places else None
        wanted = expected.get(name)
        if stored is None or wanted is None or not _is_same(stored, wanted):
            raise DamageError(
                f"{cell.path}: {name} differs from the samples of {shard_set.shards[number].name}; "
                f"{cell.remedy}"
            )


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)
