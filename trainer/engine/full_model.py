"""A task's model with its whole weights on rank 0, also if ZeRO-3 shards them."""

import copy

import torch
from torch import nn

from trainer.engine.backends import Backend


class FullModel:
    """Access to the whole model for an export or a validation.

    Without DeepSpeed, under DDP and under ZeRO 0 to 2, the task's own model is whole on every rank.
    Under ZeRO-3, a rank keeps a copy of the modules without weights, made before sharding, and
    fills the copy on request.

    Args:
        model: The task's model, not yet wrapped.
        is_sharded: Whether ZeRO-3 will shard the model.
        is_wanted: Whether this rank will need the whole model: rank 0, and all ranks if they
            validate.
    """

    def __init__(self, model: nn.Module, *, is_sharded: bool, is_wanted: bool) -> None:
        self._model = model
        self._is_sharded = is_sharded
        self._empty = _without_weights(model) if is_sharded and is_wanted else None

    def gather(self, backend: Backend) -> nn.Module:
        """Collect the weights; called by all ranks.

        Returns:
            The whole model, on the CPU under ZeRO-3; ranks that do not need it get the sharded
            model, which must not be used.
        """
        if not self._is_sharded:
            return self._model
        weights: dict[str, torch.Tensor] = {}
        for name, parameter in self._model.named_parameters():
            value = backend.full_parameter(parameter)
            if self._empty is not None:
                weights[name] = value.to("cpu", copy=True)
        if self._empty is None:
            return self._model
        return _with_weights(self._empty, weights)


def _without_weights(model: nn.Module) -> nn.Module:
    """Copy a model with parameters on the meta device and real buffers."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, dict(empty))


def _with_weights(empty: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Copy the empty model and give it weights; tied parameters stay tied."""
    filled = {
        id(parameter): nn.Parameter(weights[name], requires_grad=parameter.requires_grad)
        for name, parameter in empty.named_parameters()
    }
    return copy.deepcopy(empty, dict(filled))
