"""This rank's micro-batches, step by step."""

import dataclasses
from collections.abc import Callable

from shards.order import BatchRows, Position
from shards.stream import Prefetch, Stream, prefetch
from trainer.config.schema import TrainConfig
from trainer.engine.distributed import Distributed
from trainer.tasks.base import MicroBatch, TaskData

StepBatch = tuple[list[MicroBatch], Position]


def step_batches(
    config: TrainConfig,
    data: TaskData,
    distributed: Distributed,
    position: Position | None,
    leaves_out: Callable[[Position], bool],
) -> Prefetch[StepBatch]:
    """The micro-batches of every step from a position on, collated ahead by ``data.workers``
    threads.

    Args:
        config: The run.
        data: Its order and how micro-batches are made.
        distributed: The processes.
        position: Place in the data; None at the start.
        leaves_out: Whether the batch that ends at a position is passed over.
    """

    is_pinned = distributed.device.type == "cuda"

    def collate(rows: BatchRows) -> StepBatch:
        found = [data.collate(part) for part in rows.split(config.run.micro_batch)]
        if is_pinned:
            found = [dataclasses.replace(one, batch=one.batch.pin_memory()) for one in found]
        return found, rows.position

    stream = Stream(
        data.order,
        config.run.global_batch,
        distributed.rank,
        distributed.world_size,
        position,
    )
    kept = (rows for rows in stream if not leaves_out(rows.position))
    return prefetch(kept, collate, workers=config.data.workers)
