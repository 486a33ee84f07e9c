"""Bytes that a run writes to disk, and whether they fit."""

import os
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.retention import retention_of
from trainer.config.schema import TrainConfig
from trainer.plan.batches import StepPlan
from trainer.plan.memory import FP32, checkpoint_bytes
from trainer.plan.sizes import TaskSize
from trainer.teacher_server.kinds import kinds_of


@dataclass(frozen=True, kw_only=True)
class DiskItem:
    """One kind of files."""

    what: str
    """Description, with the number of files."""
    bytes: int
    """Bytes of all of them together."""
    where: str
    """Folder that they are written to."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A file system and the bytes to be written to it."""

    where: str
    """One of the folders on it."""
    needed: int
    """Bytes to be written."""
    free: int
    """Bytes that a user may still write."""

    @property
    def fits(self) -> bool:
        """Whether the bytes fit."""
        return self.needed <= self.free


def run_items(
    config: TrainConfig, size: TaskSize, steps: StepPlan | None, *, moments: int
) -> list[DiskItem]:
    """List the run folder's files at their peak, while a checkpoint is written.

    Args:
        config: The run.
        size: Size of its task.
        steps: Steps of the run; None if unknown: then without permanent checkpoints and copies.
        moments: Adam's tensors per parameter.
    """
    run, folder = config.run, config.run.dir
    made = len(steps.checkpoints) if steps else run.keep_checkpoints + 1
    if steps and config.validates is not None:  # one more for every improvement
        made += -(-steps.steps // config.validates.every)
    kept = min(run.keep_checkpoints, made)
    permanent = steps.steps // run.keep_every if steps and run.keep_every else 0
    best = 1 if retention_of(config).metric is not None else 0
    count = min(kept + permanent + best, made) + 1  # the next is complete before one is deleted
    each = checkpoint_bytes(size, moments=moments)
    items = [
        DiskItem(
            what=f"{count} checkpoints ({kept} newest, {permanent} permanent, {best} best, 1 being "
            f"written) of {each / 1e9:.2f} GB",
            bytes=count * each,
            where=folder,
        )
    ]
    copies = len(steps.copies) if steps else 0
    if copies:
        items.append(
            DiskItem(
                what=f"{copies} teacher copies", bytes=copies * size.model * FP32, where=folder
            )
        )
    items.append(DiskItem(what="export", bytes=size.model * FP32, where=folder))
    return items


def teacher_columns(
    stage: int, *, teachers: int, articles: int, impressions: int, candidates: int, width: int,
    dtype: str,
) -> int:  # fmt: skip
    """Return the largest size of the columns that M teachers fill for a stage.

    There are fewer user vectors if histories repeat.

    Args:
        stage: Stage 1 or 2.
        teachers: Number of teachers, M.
        articles: Rows of the article set.
        impressions: Rows of the impression set.
        candidates: Candidates of all impressions.
        width: Width of the teachers' vectors.
        dtype: Storage type.
    """
    rows = {"articles": articles, "impressions": impressions, "candidates": candidates}
    kinds = kinds_of(str(stage))
    return teachers * sum(kind.most_bytes(rows, width, dtype) for kind in kinds)


def token_column(articles: int, tokens_each: float, fields: int = 2, value_bytes: int = 2) -> int:
    """Return the bytes of a token column: ids, and one offset per article and field.

    Args:
        articles: Number of rows.
        tokens_each: Tokens of all fields of an article, without special tokens.
        fields: Stored texts of an article, such as title and body.
        value_bytes: Bytes of an id: 2 below 65,536 vocabulary entries, else 4.
    """
    return round(articles * (tokens_each * value_bytes + fields * 8))


def rooms(items: list[DiskItem]) -> list[Room]:
    """Return each file system's needed and free bytes."""
    found: dict[int, Room] = {}
    for item in items:
        folder = _existing(Path(item.where))
        system = os.statvfs(folder)
        before = found.get(folder.stat().st_dev)
        needed = item.bytes + (before.needed if before else 0)
        where = before.where if before else item.where
        found[folder.stat().st_dev] = Room(
            where=where, needed=needed, free=system.f_bavail * system.f_frsize
        )
    return list(found.values())


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest existing folder above it."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
