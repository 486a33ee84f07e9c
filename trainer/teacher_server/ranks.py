"""Which of several processes this one is, and where and in what precision it computes.

Filling needs no collective: a process only has to know its share of the cells. So there is no
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
    """Among the processes of this machine."""
    local_world_size: int

    def share(self, part: int, parts: int) -> tuple[int, int]:
        """This process's share of the I-th of N parts: again (I, N)."""
        return part * self.world_size + self.rank, parts * self.world_size

    def say(self, line: str) -> None:
        """Print a line, with the rank where there are several."""
        print(f"[{self.rank}] {line}" if self.world_size > 1 else line, flush=True)


def place() -> Place:
    """This process's place: as torchrun and ``accelerate launch`` say it, else as ``srun`` does.

    Inside a batch script, but outside ``srun``, Slurm's number of tasks says nothing about this
    process; only what a *step* sets is read.

    Raises:
        UsageError: The variables contradict each other.
    """
    if "WORLD_SIZE" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_STEP_NUM_TASKS" in os.environ:
        # Slurm has given each of its tasks cores of its own; they are not shared once more.
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
    """Divide this machine's cores among its processes, unless OMP_NUM_THREADS has a say."""
    if here.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // here.local_world_size))


def resolve_compute(asked: str, device: str) -> str:
    """``auto`` becomes ``bf16`` where the hardware computes in it, else ``fp32``.

    See :func:`trainer.hardware.emulated`. What it becomes is what columns are known by, so machines
    of several kinds that fill one column set must be told ``fp32`` or ``bf16``.
    """
    if asked != "auto":
        return asked
    return "bf16" if emulated("bf16", device) is None else "fp32"
