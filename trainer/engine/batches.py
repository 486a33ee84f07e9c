"""This rank's micro-batches, step by step."""

from collections.abc import Callable

import numpy as np
import torch

from shards.order import BatchRows, Position
from shards.stream import Prefetch, Stream, prefetch
from trainer.config.schema import TrainConfig
from trainer.engine.distributed import Distributed
from trainer.tasks.base import TaskData

MicroBatch = dict[str, np.ndarray]
StepBatch = tuple[list[MicroBatch], Position]
PADDING = "padding"
"""Entry of a micro-batch that is reported instead of passed on: its share of padding, 0 to 1."""
TEXTS = "texts"
"""Another: numbers of texts and tokens, see :func:`trainer.tasks.texts.reported`."""


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

    def collate(rows: BatchRows) -> StepBatch:
        parts = rows.split(config.run.micro_batch)
        return [data.collate(part) for part in parts], rows.position

    stream = Stream(
        data.order,
        config.run.global_batch,
        distributed.rank,
        distributed.world_size,
        position,
    )
    kept = (rows for rows in stream if not leaves_out(rows.position))
    return prefetch(kept, collate, workers=config.data.workers)


def to_device(arrays: MicroBatch, device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays of a micro-batch as tensors on a device."""
    writable = {name: a if a.flags.writeable else a.copy() for name, a in arrays.items()}
    return {
        name: torch.from_numpy(array).to(device, non_blocking=True)
        for name, array in writable.items()
    }
