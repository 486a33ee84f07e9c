"""Encoder input of real micro-batches."""

import numpy as np

from shards.order import BatchRows
from trainer.config.schema import TrainConfig
from trainer.plan.compute import MicroWork, Work
from trainer.tasks.base import TaskData
from trainer.tasks.texts import TextCounts

MICRO_BATCHES = 16


def sampled_work(config: TrainConfig, data: TaskData, count: int = MICRO_BATCHES) -> MicroWork:
    """Lay out micro-batches evenly spaced over the first epoch, as training does.

    Args:
        config: The run.
        data: Data half of the run's task.
        count: Largest number of micro-batches to lay out.
    """
    order, size = data.order, config.run.micro_batch
    places = np.unique(np.linspace(0, max(0, order.num_units - size), count).astype(int))
    found = []
    for start in places.tolist():
        rows, epochs = order.span(start, start + size)
        made = data.collate(BatchRows(rows, epochs, order.position_at(start)))
        found.append(work_of(made.counts))
    total = Work(
        texts=sum(work.texts for work in found),
        tokens=sum(work.tokens for work in found),
        slots=sum(work.slots for work in found),
        slots_squared=sum(work.slots_squared for work in found),
    )
    return MicroWork(
        mean=total.times(1 / len(found)),
        largest=max(found, key=lambda work: work.slots),
        basis=f"sample of {len(found)} micro-batches evenly spaced over the first epoch",
    )


def work_of(counts: TextCounts) -> Work:
    """Return texts, tokens and slots of one micro-batch, repeated texts included."""
    return Work(
        texts=float(counts.rows),
        tokens=float(counts.row_tokens),
        slots=float(counts.slots),
        slots_squared=float(counts.slots_squared),
    )
