"""How a global batch is shared out, and what a run of so many units comes to in steps."""

import math
from dataclasses import dataclass

from trainer.config.schema import TrainConfig
from trainer.config.validate import check_batch
from trainer.engine.copies import copy_steps
from trainer.engine.schedule import total_steps


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """One optimizer step over all ranks: global = nodes x processes x micro x accumulation."""

    global_batch: int
    """Samples an optimizer step."""
    nodes: int
    """Machines."""
    processes: int
    """Ranks on each machine."""
    micro_batch: int
    """Samples a forward pass on one rank."""
    accumulation: int
    """Micro-batches of one rank in a step."""
    micro_batches: tuple[int, ...]
    """Every micro-batch that divides this rank's share."""

    @property
    def ranks(self) -> int:
        """All processes."""
        return self.nodes * self.processes

    def line(self) -> str:
        """The arithmetic in words."""
        ranks = f"{self.ranks} ranks"
        if self.nodes > 1:
            ranks = f"{self.nodes} nodes x {self.processes} ranks"
        return (
            f"global batch {self.global_batch} = {ranks} x micro-batch {self.micro_batch} x "
            f"{self.accumulation} accumulated"
        )


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A run in optimizer steps."""

    units: int
    """Samples of an epoch."""
    epochs: float
    """Passes over them that are asked for."""
    steps: int
    """Optimizer steps."""
    warmup_steps: int
    """Steps over which the learning rate rises."""
    copies: tuple[int, ...]
    """Steps after which a teacher copy is exported."""
    checkpoints: tuple[int, ...]
    """Steps after which a checkpoint is written."""

    def lines(self) -> list[str]:
        """Units, steps and copies in words."""
        copies = ", ".join(map(str, self.copies)) or "none"
        return [
            f"{self.units:,} units x {self.epochs:g} epochs -> {self.steps:,} optimizer steps",
            f"teacher copies after steps: {copies}",
        ]


def plan_batches(config: TrainConfig, nodes: int, processes: int) -> BatchPlan:
    """Share a run's global batch out.

    Args:
        config: The run.
        nodes: Machines.
        processes: Ranks on each machine.

    Raises:
        ConfigError: The global batch does not divide; the message shows the arithmetic.
    """
    run, ranks = config.run, nodes * processes
    accumulation = check_batch(config, ranks)
    share = run.global_batch // ranks
    divisors = _divisors(share)
    if config.takes_whole_batch:  # the whole share in one forward pass
        divisors = (share,)
    return BatchPlan(
        global_batch=run.global_batch,
        nodes=nodes,
        processes=processes,
        micro_batch=run.micro_batch,
        accumulation=accumulation,
        micro_batches=divisors,
    )


def _divisors(number: int) -> tuple[int, ...]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return tuple(sorted({*small, *(number // size for size in small)}))


def plan_steps(config: TrainConfig, units: int) -> StepPlan:
    """Steps of a run over so many units.

    Args:
        config: The run.
        units: Samples of an epoch: articles, or clicks.

    Raises:
        ConfigError: The run is too short for the teacher copies that it is to leave.
    """
    run = config.run
    steps = total_steps(run, units)
    every = run.checkpoint_every
    return StepPlan(
        units=units,
        epochs=run.epochs,
        steps=steps,
        warmup_steps=min(config.optimizer.warmup_steps, steps),
        copies=tuple(copy_steps(run.copies, steps)),
        checkpoints=tuple(sorted({*range(every, steps + 1, every), steps})),
    )
