"""Layers of a language model of any family: find them, keep some of them."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from shards import pretrained
from trainer.errors import DataError, ModelError


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the list of transformer layers inside a language model.

    The list is the ``ModuleList`` with as many entries as the configuration has layers; if several
    have that length (experts, for instance), it is the one with the most weights.

    Args:
        model: Any encoder of transformers.

    Returns:
        The list's name inside the model (``encoder.layer`` in BERT) and the list itself.

    Raises:
        ModelError: The model has no such list, for example because its layers share one set of
            weights (ALBERT).
    """
    wanted = model.config.num_hidden_layers
    found = [
        (sum(p.numel() for p in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted
    ]
    if not found:
        raise ModelError(
            f"no list of {wanted} layers in a model of type {model.config.model_type!r}, so its "
            "layers cannot be selected or frozen one by one: give --model.backbone.layers None "
            "--model.trainable_layers None, or use another backbone"
        )
    _, name, layers = max(found, key=lambda entry: entry[0])
    return name, layers


def pooler_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """Return arguments that keep a language model from building an unused pooler.

    An unused pooler would be counted and exported, and every data-parallel reduction would wait for
    it.

    Args:
        config: Configuration of the language model.

    Returns:
        ``{"add_pooling_layer": False}`` if the model's class accepts that argument, otherwise
        nothing.
    """
    if type(config) not in MODEL_MAPPING:
        raise ModelError(f"transformers has no plain model of type {config.model_type!r}")
    model_class: Any = MODEL_MAPPING[type(config)]
    if isinstance(model_class, tuple | list):
        model_class = model_class[0]
    known = inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def new_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a language model with random weights and without an unused pooler.

    Raises:
        ModelError: The family cannot be built from this configuration.
    """
    try:
        return pretrained.new_model(config, **pooler_arguments(config))
    except DataError as error:
        raise ModelError(str(error)) from error


def select_layers(model: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Keep only some layers of a language model, in place, and adapt its configuration.

    Embeddings and everything else outside the list of layers stay. Settings with one entry per
    layer (such as ``layer_types``) are cut in the same way, so that a saved student loads again.

    Args:
        model: Any encoder of transformers.
        layers: Numbers of the layers to keep, from 0, ascending.

    Raises:
        ModelError: A number is out of range, repeated or out of order, or the family ties its
            layers to their places, so that the selection could not be loaded again.
    """
    config = model.config
    total = config.num_hidden_layers
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= total:
        raise ModelError(
            f"backbone.layers is {list(layers)}; expected ascending layer numbers between 0 and "
            f"{total - 1} (the backbone has {total} layers)"
        )
    if list(layers) == list(range(total)):
        return
    path, old = find_layers(model)
    kept = nn.ModuleList(old[number] for number in layers)
    for place, layer in enumerate(kept):
        for module in layer.modules():
            for attribute in ("layer_idx", "layer_id"):
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, place)
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, kept)
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == total:
            setattr(config, key, type(value)(value[number] for number in layers))
    config.num_hidden_layers = len(layers)
    _check_loadable(model)


def _check_loadable(model: PreTrainedModel) -> None:
    """Compare names and shapes with a new model from the adapted configuration."""
    with torch.device("meta"):
        fresh = new_language_model(model.config)
    expected = {name: tuple(value.shape) for name, value in fresh.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differing = sorted(expected.items() ^ found.items())
    if differing:
        name, shape = differing[0]
        raise ModelError(
            f"these layers of a model of type {model.config.model_type!r} cannot be selected: "
            f"{name} {shape} "
            "would be missing or left over when the student is loaded again. Select the first "
            "layers"
        )
