"""Place of this process among several, its device and its precision.

Filling needs no collectives: a process only has to know its share of the cells. So there is no
process group that one slow or killed rank could hold up.
"""

import os
from dataclasses import dataclass

from trainer.errors import UsageError
from trainer.hardware import emulated


@dataclass(frozen=True)
class Place:
    """One process among those that were started together."""

    rank: int
    world_size: int
    local_rank: int
    """Rank among the processes of this machine."""
    local_world_size: int

    def share(self, part: int, parts: int) -> tuple[int, int]:
        """Return this process's share of the I-th of N parts, again as (I, N)."""
        return part * self.world_size + self.rank, parts * self.world_size

    def say(self, line: str) -> None:
        """Print a line, with the rank if there are several."""
        print(f"[{self.rank}] {line}" if self.world_size > 1 else line, flush=True)


def place() -> Place:
    """Return this process's place from the variables of torchrun, accelerate or ``srun``.

    Inside a batch script, but outside ``srun``, Slurm's number of tasks does not describe this
    process; only variables of a *step* are read.

    Raises:
        UsageError: The variables contradict each other.
    """
    if "WORLD_SIZE" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_STEP_NUM_TASKS" in os.environ:
        # Slurm gives each task its own cores, so they are not divided again.
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "")
    else:
        return Place(0, 1, 0, 1)
    rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in names[:3])
    if not 0 <= rank < max(world_size, 1):
        raise UsageError(
            f"{names[0]} is {rank} and {names[1]} is {world_size}; expected a rank from 0 on, "
            "below the number of processes"
        )
    return Place(rank, world_size, local_rank, int(os.environ.get(names[3], "1")))


def share_cores(here: Place) -> None:
    """Divide this machine's cores among its processes, unless OMP_NUM_THREADS is set."""
    if here.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // here.local_world_size))


def resolve_compute(asked: str, device: str) -> str:
    """Replace ``auto`` by ``bf16`` if the hardware computes in it, else by ``fp32``.

    See :func:`trainer.hardware.emulated`. The result is part of a column's identity, so machines of
    several kinds that fill one column set must be given ``fp32`` or ``bf16``.
    """
    if asked != "auto":
        return asked
    return "bf16" if emulated("bf16", device) is None else "fp32"
