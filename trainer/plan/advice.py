"""Advice for GPUs of a given size: the way to share a run, and the micro-batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.plan.memory import RankMemory

GIB = 1 << 30

QUICKEST_FIRST = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
"""Ways from the least to the most communication or offloading. ``zero0`` equals DDP, and ``zeropp``
is for slow links, not for memory."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The quickest way that fits."""

    way: str | None
    """Name of the way; None if nothing fits."""
    micro_batch: int
    """Largest micro-batch that fits, up to the configured one."""
    is_checkpointed: bool
    """Whether ``run.activation_checkpointing`` is needed."""
    peak: int
    """Peak bytes on the GPU."""

    def line(self, gib: float, reserve_gib: float) -> str:
        """Format the advice."""
        room = f"{gib:g} GiB per GPU ({reserve_gib:g} reserved for CUDA, NCCL and fragmentation)"
        if self.way is None:
            return f"{room}: nothing fits, not even {self.peak / GIB:.1f} GiB with micro-batch 1"
        file = "no DeepSpeed file (DDP)" if self.way == "ddp" else f"run.deepspeed {self.way}"
        also = ", run.activation_checkpointing" if self.is_checkpointed else ""
        return (
            f"{room}: {file}{also}, run.micro_batch {self.micro_batch}: {self.peak / GIB:.1f} GiB"
        )


def advise(
    memories: dict[str, RankMemory],
    activations: Callable[[int, bool], int],
    micro_batches: Sequence[int],
    *,
    room: int,
    is_checkpointed: bool,
) -> Advice:
    """Choose the quickest way that fits with the largest micro-batch.

    A smaller micro-batch costs less than another way of sharing, as long as it is at least an
    eighth of the configured one; recomputing activations costs a third of a step.

    Args:
        memories: Memory of each way, by name.
        activations: Bytes of activations by (micro-batch, with checkpointing?).
        micro_batches: Possible micro-batches, of which the configured one is the largest.
        room: Usable bytes of a GPU.
        is_checkpointed: Whether the run is already configured with checkpointing.
    """
    sizes = sorted(micro_batches, reverse=True)
    ways = [name for name in QUICKEST_FIRST if name in memories]
    large = [size for size in sizes if size * 8 >= sizes[0]]
    for choice in (large, sizes):
        for again in sorted({is_checkpointed, True}):
            for name in ways:
                for size in choice:
                    peak = memories[name].peak(activations(size, again))
                    if peak <= room:
                        return Advice(way=name, micro_batch=size, is_checkpointed=again, peak=peak)
    least = min(memories[name].peak(activations(sizes[-1], True)) for name in ways)
    return Advice(way=None, micro_batch=sizes[-1], is_checkpointed=True, peak=least)
