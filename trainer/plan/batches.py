"""Division of a global batch among ranks, and the number of steps of a run."""

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
    """Samples per optimizer step."""
    nodes: int
    """Number of nodes."""
    processes: int
    """Ranks per node."""
    micro_batch: int
    """Samples per forward pass on one rank."""
    accumulation: int
    """Micro-batches of one rank per step."""
    micro_batches: tuple[int, ...]
    """Every micro-batch that divides this rank's share."""

    @property
    def ranks(self) -> int:
        """Number of all processes."""
        return self.nodes * self.processes

    def line(self) -> str:
        """Format the arithmetic."""
        ranks = f"{self.ranks} ranks"
        if self.nodes > 1:
            ranks = f"{self.nodes} nodes x {self.processes} ranks"
        return (
            f"global batch {self.global_batch} = {ranks} x micro-batch {self.micro_batch} x "
            f"{self.accumulation} accumulated"
        )


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Optimizer steps of a run."""

    units: int
    """Samples per epoch."""
    epochs: float
    """Requested passes over the samples."""
    steps: int
    """Number of optimizer steps."""
    warmup_steps: int
    """Steps over which the learning rate rises."""
    copies: tuple[int, ...]
    """Steps after which a teacher copy is exported."""
    checkpoints: tuple[int, ...]
    """Steps after which a checkpoint is written."""

    def lines(self) -> list[str]:
        """Format units, steps and copies."""
        copies = ", ".join(map(str, self.copies)) or "none"
        return [
            f"{self.units:,} units x {self.epochs:g} epochs -> {self.steps:,} optimizer steps",
            f"teacher copies after steps: {copies}",
        ]


def plan_batches(config: TrainConfig, nodes: int, processes: int) -> BatchPlan:
    """Divide a run's global batch among the ranks.

    Args:
        config: The run.
        nodes: Number of nodes.
        processes: Ranks per node.

    Raises:
        ConfigError: The global batch is not divisible; the message shows the arithmetic.
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
    """Compute the steps of a run over a number of units.

    Args:
        config: The run.
        units: Samples per epoch: articles, or clicks.

    Raises:
        ConfigError: The run is too short for its teacher copies.
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
