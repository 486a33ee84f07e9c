"""A language model cut in two between its layers: one half below the cut, one above it.

Each half is the family's own forward pass, with stand-ins in place of the layers that are left out.
So masks, position biases and norms outside the layers are prepared as in the family, and names and
weights stay unchanged.

Shape legend: U texts, L tokens, D width.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.errors import ModelError
from trainer.models.layers import find_layers

_TOLERANCE = 1e-4
"""Largest difference between two states that should be equal, relative to the largest value."""


class _StandIn(nn.Module):
    """Stand-in for a module that is left out: returns the given states, or its input.

    Args:
        replaced: The module to replace.
        num_empty: None if the module returns a tensor; if it returns a tuple, the tuple's length
            without the states, which is filled with None.
    """

    def __init__(self, replaced: nn.Module, num_empty: int | None = None) -> None:
        super().__init__()
        self.given: Tensor | None = None
        self._num_empty = num_empty
        # Some families ask a layer for its kind of attention before they call it.
        for name, value in vars(replaced).items():
            if not name.startswith("_") and isinstance(value, str):
                setattr(self, name, value)

    def forward(self, hidden_states: Tensor | None = None, *rest: Any, **named: Any) -> Any:
        out = hidden_states if self.given is None else self.given
        return out if self._num_empty is None else (out, *[None] * self._num_empty)


class LayerSplit:
    """A language model split into the parts below and above a number of its layers.

    The upper half may need only the states of the lower half, which holds for encoders that are a
    plain stack of layers. A family's type does not tell this, so both ways are compared on a short
    text when the model is cut.

    Args:
        language_model: Language model with its weights whole.
        num_below: Layers below the cut, at least 1.

    Attributes:
        num_below: The same number.

    Raises:
        ModelError: There are fewer layers, they cannot be identified, or more than states passes
            between them.
    """

    def __init__(self, language_model: PreTrainedModel, num_below: int) -> None:
        """Examine the outputs of the layers, and compare both ways."""
        path, layers = find_layers(language_model)
        if not 0 < num_below <= len(layers):
            raise ModelError(
                f"a backbone of {len(layers)} layers cannot be cut above {num_below} of them"
            )
        self.num_below = num_below
        self._language_model = language_model
        self._layers = layers
        self._last_below = layers[num_below - 1]
        self._embeddings = _embeddings(language_model, path)
        was_training = language_model.training
        language_model.eval()
        try:
            with torch.no_grad():
                self._prepare()
        finally:
            language_model.train(was_training)

    def below(self, input_ids_UL: Tensor, mask: Tensor) -> Tensor:
        """Return states ``[U, L, D]`` after the layers below the cut, without computing the others.

        Args:
            input_ids_UL: int64 ``[U, L]``.
            mask: Mask in the language model's form.
        """
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        above = range(self.num_below, len(self._layers))
        hook = self._last_below.register_forward_hook(keep)
        try:
            with _replaced(self._layers, {str(n): self._stand_ins[n] for n in above}):
                self._language_model(input_ids=input_ids_UL, attention_mask=mask)
        finally:
            hook.remove()
        return found[0]

    def above(self, states_ULD: Tensor, mask: Tensor) -> Tensor:
        """Compute the states ``[U, L, D]`` of the last layer from those of :meth:`below`.

        Args:
            states_ULD: ``[U, L, D]``.
            mask: Mask in the language model's form.
        """
        below = {str(n): self._stand_ins[n] for n in range(self.num_below)}
        # The stand-in for embeddings is read only for its shape, device and dtype.
        embedded = states_ULD.new_zeros(1).expand(*states_ULD.shape[:2], self._embedded_width)
        name = self._embeddings
        first = {} if name is None else {name: self._stand_in}
        try:
            self._stand_in.given = embedded
            for stand_in in below.values():
                stand_in.given = states_ULD
            with _replaced(self._layers, below), _replaced(self._language_model, first):
                output = self._language_model(inputs_embeds=embedded, attention_mask=mask)
        finally:
            for stand_in in (self._stand_in, *below.values()):
                stand_in.given = None
        return output.last_hidden_state

    def _prepare(self) -> None:
        """Create the stand-ins from the replaced modules' outputs, and compare both ways.

        Raises:
            ModelError: The model cannot be cut.
        """
        model = self._language_model
        ids_UL = torch.arange(6, device=model.device).view(2, 3)
        mask_UL = torch.tensor([[1, 1, 1], [1, 1, 0]], device=model.device)
        try:
            whole_ULD, outputs = self._watched(ids_UL, mask_UL)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise self._cannot(f"it cannot encode a text of 3 tokens ({error})") from error
        output, embedded = outputs.get("layer"), outputs.get("embeddings")
        rest = output[1:] if isinstance(output, tuple) else ()
        states = output[0] if isinstance(output, tuple) else output
        if not isinstance(states, Tensor) or any(entry is not None for entry in rest):
            raise self._cannot("its layers return more than their states")
        num_empty = len(rest) if isinstance(output, tuple) else None
        self._stand_ins = [_StandIn(layer, num_empty) for layer in self._layers]
        self._stand_in = _StandIn(nn.Module())
        table: Any = model.get_input_embeddings()
        self._embedded_width = int((embedded if embedded is not None else table.weight).shape[-1])
        try:
            ours_ULD = self.above(self.below(ids_UL, mask_UL), mask_UL)
            difference = float((ours_ULD - whole_ULD)[mask_UL > 0].abs().max())
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise self._cannot(f"its halves do not fit ({error})") from error
        largest = float(whole_ULD[mask_UL > 0].abs().max())
        if not difference <= _TOLERANCE * largest:
            raise self._cannot("more than states passes between its layers")

    def _watched(self, ids_UL: Tensor, mask_UL: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the model's states, and the outputs of the layer below the cut and embeddings."""
        model = self._language_model
        watched = {"layer": self._last_below}
        if self._embeddings is not None:
            watched["embeddings"] = model.get_submodule(self._embeddings)
        outputs: dict[str, Any] = {}

        def keeper(name: str) -> Any:
            return lambda module, inputs, output: outputs.update({name: output})

        hooks = [part.register_forward_hook(keeper(name)) for name, part in watched.items()]
        try:
            states_ULD = model(input_ids=ids_UL, attention_mask=mask_UL).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        return states_ULD, outputs

    def _cannot(self, why: str) -> ModelError:
        family = self._language_model.config.model_type
        return ModelError(
            f"a backbone of type {family!r} cannot be cut between its layers: {why}. Set "
            "model.frozen_states to off"
        )


def _embeddings(language_model: PreTrainedModel, layers: str) -> str | None:
    """Name the part of a language model that computes its layers' input from token ids.

    The part is the child that holds the table of input embeddings, without the layers; None if the
    table is a child itself, because such a table is not called when its output is given.
    """
    table = language_model.get_input_embeddings()
    for name, child in language_model.named_children():
        holds_table = any(module is table for module in child.modules())
        if holds_table and child is not table and layers.partition(".")[0] != name:
            return name
    return None


@contextmanager
def _replaced(owner: nn.Module, stand_ins: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace some children of a module by stand-ins while the block runs."""
    kept = {name: owner._modules[name] for name in stand_ins}
    owner._modules.update(stand_ins)
    try:
        yield
    finally:
        owner._modules.update(kept)
