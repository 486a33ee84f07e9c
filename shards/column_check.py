"""Checking column sets against their commit records, byte by byte."""

from shards.cells import open_cell, record_path
from shards.column_info import ColumnInfo, read_info, removal_command, repair_command
from shards.column_reader import ColumnReader
from shards.errors import ColumnError, DamageError
from shards.reader import ShardSet


def verify_columns(reader: ColumnReader) -> list[str]:
    """Read all of a column set and check it against its commit records, here and in the cache.

    Returns:
        One line for every damaged cell, naming file, tensor and remedy; an empty list if all is
        well. Cells that are not filled (a reader has none) are no damage, unless they have a
        commit record.
    """
    info = ColumnInfo(reader.folder, reader.name, reader.made_from, reader.fingerprint)
    problems = _damaged_cells(reader.shard_set, info)
    for cell in reader.mirror_cells().values():
        if damaged := cell.damaged_tensors():
            problems.append(
                f"{cell.url}: the checksum of {', '.join(damaged)} in the cache {cell.folder} is "
                "not the one of its commit record; remove that folder"
            )
    return problems


def verify_column_folders(shard_set: ShardSet) -> tuple[list[str], list[str]]:
    """Check every column set beside a shard set, also those that are still being filled.

    Returns:
        (problems, intact): one line for every damaged cell or unreadable column set, and the names
        of the folders in which all is well.
    """
    problems: list[str] = []
    intact: list[str] = []
    folders = sorted(shard_set.columns_dir.iterdir()) if shard_set.columns_dir.is_dir() else []
    for folder in folders:
        if folder.name.startswith("."):  # of the system, or a column that is being removed
            continue
        try:
            info = read_info(folder)
        except (ColumnError, DamageError) as error:
            problems.append(str(error))
            continue
        if info.made_from.get("shard_set") != shard_set.fingerprint:
            problems.append(
                f"{folder}: made from another version of the set; run "
                f"`{removal_command(shard_set, folder)}`"
            )
            continue
        damaged = _damaged_cells(shard_set, info)
        problems += damaged
        if not damaged:
            intact.append(folder.name)
    return problems, intact


def _damaged_cells(shard_set: ShardSet, info: ColumnInfo) -> list[str]:
    problems = []
    repair = repair_command(shard_set, info.name, info.made_from)
    for shard in shard_set.manifest.shards:
        try:
            cell = open_cell(info.folder, info.fingerprint, shard)
            damaged = [] if cell is None else cell.damaged_tensors()
        except DamageError as error:
            problems.append(str(error))
            continue
        if cell is None and (record := record_path(info.folder, shard)).exists():
            problems.append(
                f"{record}: this commit record and the data file beside it do not belong together; "
                f"run `{repair}`"
            )
        if cell is not None and damaged:
            problems.append(
                f"{cell.path}: the checksum of {', '.join(damaged)} is not the one of its commit "
                f"record; delete {cell.path.with_suffix('.json').name} and "
                f"run `{repair}`"
            )
    return problems
