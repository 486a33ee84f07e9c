"""Adam over the task's parameter groups, and its learning rate for each step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from trainer.config.schema import OptimizerConfig
from trainer.engine.schedule import learning_rate_factor
from trainer.errors import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""Adam's tensors per parameter; the last one only with AMSGrad."""


def moments_of(config: OptimizerConfig) -> tuple[str, ...]:
    """Return the names of the tensors that this Adam keeps for a parameter."""
    return MOMENTS if config.amsgrad else MOMENTS[:2]


def build_optimizer(task: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    """Make Adam, or AdamW with weight decay, over the trainable parameters of a task.

    The groups come from the task's own ``parameter_groups(config)`` if it has one, otherwise from
    :func:`trainer.models.parameters.parameter_groups`.

    Raises:
        ConfigError: No parameter is trainable, or the groups miss or repeat a trainable parameter.
    """
    if hasattr(task, "parameter_groups"):
        own: Any = task
        groups = own.parameter_groups(config)
    else:
        from trainer.models.parameters import parameter_groups

        groups = parameter_groups(task, config)
    groups = [group for group in groups if group["params"]]
    _check_groups(task, groups)
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        amsgrad=config.amsgrad,
    )


class LearningRate:
    """Learning rate of every group as a pure function of the step.

    Keeps references to the group dicts, not to the optimizer: DeepSpeed empties and refills the
    groups' parameters but keeps the dicts.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int
    ) -> None:
        self._groups: Sequence[dict[str, Any]] = list(optimizer.param_groups)
        self._base = [float(group["lr"]) for group in self._groups]
        self._config = config
        self._steps = steps

    def set(self, step: int) -> dict[str, float]:
        """Set the groups' learning rates for a step (from 1).

        Returns:
            The rates by name: ``lr`` for the last group, ``lr_<name>`` for other named groups.
        """
        factor = learning_rate_factor(self._config, step, self._steps)
        rates = {}
        for number, (group, base) in enumerate(zip(self._groups, self._base, strict=True)):
            group["lr"] = base * factor
            is_last = number == len(self._groups) - 1
            rates["lr" if is_last else f"lr_{group.get('name', number)}"] = base * factor
        return rates


def fresh_adam_state(
    parameter: torch.Tensor, config: OptimizerConfig, step: int
) -> dict[str, torch.Tensor]:
    """Return the state of torch's Adam for a parameter after ``step`` steps, with zero moments."""
    moments = {name: torch.zeros_like(parameter) for name in moments_of(config)}
    # torch keeps the counter as a float tensor on the CPU, whatever the parameter's device.
    return {"step": torch.tensor(float(step), dtype=torch.float32), **moments}


def _check_groups(task: nn.Module, groups: list[dict[str, Any]]) -> None:
    trainable = {id(p): name for name, p in task.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("no parameter of the model is trainable; see model.trainable_layers")
    seen: set[int] = set()
    for parameter in (p for group in groups for p in group["params"]):
        if id(parameter) in seen:
            raise ConfigError(
                f"parameter {trainable.get(id(parameter))} is in two parameter groups"
            )
        seen.add(id(parameter))
    missed = [name for key, name in trainable.items() if key not in seen]
    frozen = len(seen - trainable.keys())
    if missed or frozen:
        raise ConfigError(
            f"the parameter groups leave out trainable parameters {missed[:5]} and hold {frozen} "
            "frozen ones: freeze parameters with requires_grad, and put every trainable one into "
            "one group"
        )
