"""Which way to share a run over GPUs of a given size, and with which micro-batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.plan.memory import RankMemory

GIB = 1 << 30

QUICKEST_FIRST = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
"""From the least to the most that is sent or computed elsewhere. ``zero0`` is DDP, and ``zeropp``
is for slow links, not for memory."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The quickest way that fits."""

    way: str | None
    """Its name, or None where nothing fits."""
    micro_batch: int
    """The largest micro-batch that fits with it, up to the configured one."""
    is_checkpointed: bool
    """Whether that takes ``run.activation_checkpointing``."""
    peak: int
    """Bytes on the GPU."""

    def line(self, gib: float, reserve_gib: float) -> str:
        """The advice in words."""
        room = f"{gib:g} GiB a GPU ({reserve_gib:g} kept for CUDA and fragments)"
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

    A smaller micro-batch costs less than another way of sharing, as long as it is an eighth of the
    configured one at least; computing activations again costs a third of a step.

    Args:
        memories: What each way takes, by name.
        activations: Bytes of activations for (micro-batch, with checkpointing?).
        micro_batches: Those to choose from, the configured one the largest.
        room: Bytes of a GPU that may be used.
        is_checkpointed: Whether the run is configured with checkpointing already.
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
