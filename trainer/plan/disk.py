"""What a run leaves on disk, in bytes, and whether it fits."""

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
    """In words, with how many."""
    bytes: int
    """All of them together."""
    where: str
    """Folder that they go to."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A file system and what is to go onto it."""

    where: str
    """One of the folders on it."""
    needed: int
    """Bytes."""
    free: int
    """Bytes that a user may still write."""

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.needed <= self.free


def run_items(
    config: TrainConfig, size: TaskSize, steps: StepPlan | None, *, moments: int
) -> list[DiskItem]:
    """Files of the run folder at their most: while a checkpoint is written, beside all that stay.

    Args:
        config: The run.
        size: Its task.
        steps: Its steps, None where they are not known: then without permanent ones and copies.
        moments: Tensors of Adam for a parameter.
    """
    run, folder = config.run, config.run.dir
    made = len(steps.checkpoints) if steps else run.keep_checkpoints + 1
    if steps and config.validates is not None:  # one more for every improvement
        made += -(-steps.steps // config.validates.every)
    kept = min(run.keep_checkpoints, made)
    permanent = steps.steps // run.keep_every if steps and run.keep_every else 0
    best = 1 if retention_of(config).metric is not None else 0
    count = min(kept + permanent + best, made) + 1  # the next one is complete before one goes
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
    """Bytes of the columns that M teachers fill for a stage, at most: user vectors are fewer where
    histories come again.

    Args:
        stage: 1 or 2.
        teachers: M.
        articles: Rows of the article set.
        impressions: Rows of the impression set.
        candidates: Candidates of all impressions.
        width: Width of the teachers' vectors.
        dtype: How they are stored.
    """
    rows = {"articles": articles, "impressions": impressions, "candidates": candidates}
    kinds = kinds_of(str(stage))
    return teachers * sum(kind.most_bytes(rows, width, dtype) for kind in kinds)


def token_column(articles: int, tokens_each: float, fields: int = 2, value_bytes: int = 2) -> int:
    """Bytes of a token column: ids, and an offset an article for each field.

    Args:
        articles: Rows.
        tokens_each: Tokens of all fields of an article, without special ones.
        fields: Texts of an article that are stored, such as title and body.
        value_bytes: Of an id: 2 below 65,536 entries of a vocabulary, else 4.
    """
    return round(articles * (tokens_each * value_bytes + fields * 8))


def rooms(items: list[DiskItem]) -> list[Room]:
    """Each file system that items go to: what they need together, and what is free."""
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
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
