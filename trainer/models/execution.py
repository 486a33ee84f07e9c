"""Execution of a backbone's layers: compiled, or with activation checkpointing.

Neither changes results, parameter names or saved files; both are settings of a run.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.errors import ModelError
from trainer.models.backbone import Backbone
from trainer.models.layers import find_layers

VARIANTS = 64
"""Largest number of compilations of one layer's code; beyond it, torch runs the layer uncompiled.
There are few variants (with and without a mask, one text or several, frozen or trained, half
precision or not), but they exceed torch's own limit of 8."""


def prepare_layers(model: nn.Module, *, compiled: bool, checkpointed: bool) -> None:
    """Apply a run's settings ``compile`` and ``activation_checkpointing`` before wrapping.

    Raises:
        ModelError: See :func:`checkpoint_activations`.
    """
    if checkpointed:
        checkpoint_activations(model)
    if compiled:
        compile_layers(model)


def checkpoint_activations(model: nn.Module) -> None:
    """Make every layer of every backbone keep only its input during training.

    The rest is recomputed in the backward pass, with the same random numbers (dropout) and the same
    autocast.

    Args:
        model: A news encoder, a recommender, or a module that contains one.

    Raises:
        ModelError: The backbone's family does not support transformers' checkpointing.
    """
    for backbone, layers in _layers(model):
        for layer in layers:
            if not isinstance(layer, GradientCheckpointingLayer):
                family = backbone.language_model.config.model_type
                raise ModelError(
                    f"run.activation_checkpointing is not possible with a backbone of type "
                    f"{family!r}: transformers does not checkpoint its layers; leave it out"
                )
            # Transformers' own switch sets this on a layer. The switch would also checkpoint other
            # parts of the model, and warns that it will be renamed.
            layer.gradient_checkpointing = True
            recompute: Any = partial(checkpoint, use_reentrant=False)
            layer._gradient_checkpointing_func = recompute


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of every backbone at its first call, for texts of any shape.

    Layers are compiled one by one and in place: they share their code, so a few compilations serve
    all of them, and no name changes. A layer that checkpoints its activations is compiled part by
    part, so that the compiled code lies within the recomputed part.

    Args:
        model: A news encoder, a recommender, or a module that contains one.
    """
    for _, layers in _layers(model):
        for layer in layers:
            whole = not getattr(layer, "gradient_checkpointing", False)
            for part in [layer] if whole else layer.children():
                part.compile(dynamic=True, recompile_limit=VARIANTS)


def _layers(model: nn.Module) -> Iterator[tuple[Backbone, nn.ModuleList]]:
    for backbone in (module for module in model.modules() if isinstance(module, Backbone)):
        yield backbone, find_layers(backbone.language_model)[1]
