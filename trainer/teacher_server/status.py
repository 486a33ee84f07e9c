"""Status of teacher columns: how full they are, and what is wrong with incomplete ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shards.cells import data_path, record_path
from shards.columns import (
    ColumnInfo,
    describe,
    differing_fields,
    list_columns,
    read_info,
    repair_command,
)
from trainer.errors import ColumnError, DamageError
from trainer.teacher_server.cells import Target, mb, missing_cells, stored_bytes
from trainer.teacher_server.kinds.base import Signal
from trainer.teacher_server.request import FillRequest, made_of, signals_of
from trainer.teacher_server.teachers import open_teachers


@dataclass(frozen=True)
class ColumnState:
    """State of one column of one teacher."""

    teacher: str
    column: str
    state: str
    """``complete``, ``partial``, ``empty``, ``damaged`` or ``other settings``."""
    cells: int
    total_cells: int
    rows: int
    bytes: int
    dtype: str
    detail: str
    """What differs or is damaged, or which of several columns it is; may be empty."""

    def as_json(self) -> dict[str, Any]:
        """Return the state for ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        """Format one line of the table."""
        told = self.state
        if self.state == "partial":
            told = f"{self.cells} of {self.total_cells} cells"
        return (
            f"{self.teacher[-44:]:<44} {self.column:<15} {self.rows:>11,} {mb(self.bytes):>12} "
            f"{self.dtype:<8} {told}{': ' if self.detail else ''}{self.detail}"
        )


def status(teachers: Sequence[str], request: FillRequest) -> list[ColumnState]:
    """Return the state of every teacher's columns and of columns made from them.

    Nothing is created on disk.
    """
    return [
        state
        for teacher in open_teachers(teachers)
        for signal in signals_of(teacher, request)
        for state in (
            _state(signal, signal.target),
            *(_state(signal, made, which) for made, which in made_of(signal)),
        )
    ]


def status_lines(teachers: Sequence[str], request: FillRequest) -> tuple[list[str], bool]:
    """Return a table of columns by teacher, and whether all columns are complete."""
    found = status(teachers, request)
    header = f"{'teacher':<44} {'column':<15} {'rows':>11} {'bytes':>12} {'dtype':<8} state"
    return [header, *map(str, found)], all(column.state == "complete" for column in found)


def _state(signal: Signal, target: Target, which: str = "") -> ColumnState:
    """Return the state of a signal's column, or of one made from it."""
    info = describe(*target)
    total = target.shard_set.num_shards
    missing = missing_cells(target)
    there, detail = total - len(missing), which
    state = "complete" if not missing else "partial" if there else "empty"
    if state == "empty" and not which:  # columns that were made from it are listed separately
        detail = _other_settings(info, target)
        state = "other settings" if detail else state
    damaged = _damage(info, target, missing)
    if not damaged and there and not which:
        try:
            signal.check_extra()
        except DamageError as error:
            damaged = str(error)
    if damaged:
        state, detail = "damaged", damaged
    sizes = [shard.samples for shard in target.shard_set.manifest.shards]
    return ColumnState(
        teacher=str(signal.teacher.folder),
        column=target.name,
        state=state,
        cells=there,
        total_cells=total,
        rows=sum(sizes) - sum(sizes[shard] for shard in missing),
        bytes=stored_bytes(target),
        dtype=str(target.made_from["dtype"]),
        detail=detail,
    )


def _other_settings(asked: ColumnInfo, target: Target) -> str:
    """Return the fields in which the same teacher's nearest column differs; empty without one."""
    weights = "teacher_weights_sha256"
    same: list[list[str]] = [
        differing_fields(info.made_from, asked.made_from)
        for info in list_columns(target.shard_set, target.name)
        if info.made_from.get(weights) == asked.made_from[weights]
        and info.fingerprint != asked.fingerprint
    ]
    nearest = min(same, key=lambda fields: len(fields), default=[])
    return "; ".join(nearest)


def _damage(info: ColumnInfo, target: Target, missing: list[int]) -> str:
    """Return what is damaged: a cell whose files do not match, or an edited column.json."""
    if not info.folder.is_dir():
        return ""
    try:
        read_info(info.folder)
    except (ColumnError, DamageError) as error:
        return str(error)
    shards = target.shard_set.manifest.shards
    for shard in (shards[number] for number in missing):
        if record_path(info.folder, shard).is_file():
            return (
                f"{data_path(info.folder, shard).name} does not match its commit record "
                f"({repair_command(target.shard_set, target.name)} fills it again)"
            )
    return ""
