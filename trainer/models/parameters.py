"""Trained parameters: which ones, in which groups, and how many."""

from typing import Any

from torch import nn

from trainer.config.schema import OptimizerConfig
from trainer.errors import ModelError
from trainer.models.backbone import Backbone
from trainer.models.layers import find_layers


def set_trainable(model: nn.Module, trainable_layers: int | None) -> None:
    """Freeze the lower part of every backbone inside a model.

    Everything outside the backbone is always trained. Frozen parts keep their dropout during
    training, as in the released code.

    Args:
        model: A news encoder, a recommender, or a module that contains one.
        trainable_layers: Number of the backbone's top layers to train; a larger number than it has
            means all its layers. The embeddings, the relative position table and the lower layers
            are then frozen; with 0, the whole backbone. None trains all of it except what its
            family itself keeps fixed, such as a table of sines.

    Raises:
        ModelError: The number is negative, or the backbone's layers cannot be identified.
    """
    if trainable_layers is not None and trainable_layers < 0:
        raise ModelError(
            f"trainable_layers is {trainable_layers}; expected 0 or more, or None for all"
        )
    for backbone in (module for module in model.modules() if isinstance(module, Backbone)):
        backbone.requires_grad_(trainable_layers is None)
        if trainable_layers:
            _, layers = find_layers(backbone.language_model)
            for layer in list(layers)[-trainable_layers:]:
                layer.requires_grad_(True)
        for name in backbone.fixed:
            backbone.language_model.get_parameter(name).requires_grad_(False)


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return optimizer groups for the backbone and the rest, each with its learning rate.

    Args:
        module: The module whose parameters are optimized: a model, or a task with a model and its
            own projections. Frozen parameters are left out.
        config: Learning rates and weight decay.

    Returns:
        For each non-empty group, ``backbone`` before ``rest``, a dict with ``name``, ``params``,
        ``names`` (as in ``module.named_parameters()``, in that order), ``lr`` and ``weight_decay``.

    Raises:
        ModelError: No parameter is left to train.
    """
    in_backbone = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, Backbone)
        for parameter in part.parameters()
    }
    backbone_lr = config.lr if config.backbone_lr is None else config.backbone_lr
    groups: dict[str, dict[str, Any]] = {
        name: {
            "name": name,
            "params": [],
            "names": [],
            "lr": lr,
            "weight_decay": config.weight_decay,
        }
        for name, lr in (("backbone", backbone_lr), ("rest", config.lr))
    }
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = groups["backbone" if id(parameter) in in_backbone else "rest"]
            group["params"].append(parameter)
            group["names"].append(name)
    filled = [group for group in groups.values() if group["params"]]
    if not filled:
        raise ModelError("no parameter is left to train: raise model.trainable_layers")
    return filled


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Count the parameters, shared ones once.

    Args:
        model: Any module with its full weights (not partitioned by ZeRO-3).
        trainable_only: Count only trained parameters.

    Returns:
        The number of parameters.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
