"""The language model inside a news encoder, with or without UniLMv2's relative position bias.

Shape legend: U texts, L tokens, D width, A attention heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from shards.errors import first_line
from trainer.errors import ModelError
from trainer.models.attention_scores import scores_kept
from trainer.models.layers import find_layers, new_language_model
from trainer.models.relative_position import RelativePositionBias
from trainer.models.split import LayerSplit

# Families whose attention adds a given float mask [U, A, L, L] to its scores unchanged.
_TAKES_A_BIAS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def max_tokens(model: PreTrainedModel) -> int | None:
    """Return the longest text in tokens for a language model; None without a limit.

    RoBERTa and its relatives count positions from the padding id on, and their table marks that
    place: they read correspondingly fewer tokens.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    try:
        words = model.get_input_embeddings()
    except NotImplementedError as error:
        raise ModelError(
            f"a backbone of type {model.config.model_type!r} has no table of word embeddings, "
            "expected an encoder of token ids like BERT, RoBERTa, MPNet or DistilBERT; take a "
            "backbone of another family"
        ) from error
    for table in model.modules():
        if not isinstance(table, nn.Embedding) or table is words:
            continue
        if table.num_embeddings == positions and table.padding_idx is not None:
            return positions - table.padding_idx - 1
    return positions


class Backbone(nn.Module):
    """A language model that turns token ids into token states."""

    def __init__(
        self,
        config: PreTrainedConfig,
        relative_position_bias: bool,
        language_model: PreTrainedModel | None = None,
    ):
        """Wrap a language model, or build a new one with random weights.

        Args:
            config: Configuration of the language model.
            relative_position_bias: Add UniLMv2's bias to the scores of every layer.
            language_model: The model itself, if it is already loaded.

        Raises:
            ModelError: The family's attention does not support the bias.
        """
        super().__init__()
        if language_model is None:
            language_model = new_language_model(config)
        self.language_model = language_model
        self.max_tokens = max_tokens(language_model)
        self.fixed = [n for n, p in language_model.named_parameters() if not p.requires_grad]
        self.split: LayerSplit | None = None
        self.rel_pos_bias: RelativePositionBias | None = None
        if relative_position_bias:
            if config.model_type not in _TAKES_A_BIAS:
                raise ModelError(
                    "relative_position_bias is not possible with a backbone of type "
                    f"{config.model_type!r}, only with {', '.join(_TAKES_A_BIAS)} (MPNet has its "
                    "own such bias)"
                )
            self.rel_pos_bias = RelativePositionBias(config.num_attention_heads)

    def forward(self, input_ids_UL: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Return the states of the last layer.

        Args:
            input_ids_UL: int64 ``[U, L]``.
            attention_mask_UL: bool ``[U, L]``, at least one True per text.

        Returns:
            ``[U, L, D]``.

        Raises:
            ModelError: L exceeds what the language model can read, or its family cannot encode such
                texts.
        """
        return self._run(input_ids_UL, attention_mask_UL).last_hidden_state

    def look_inside(
        self,
        input_ids_UL: Tensor,
        attention_mask_UL: Tensor,
        states_of: Sequence[int],
        scores_of: Sequence[int],
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the last layer's states as :meth:`forward`, and what some layers computed.

        Arguments and errors are those of :meth:`trainer.models.news_encoder.NewsEncoder.encode`.
        """
        _, layers = find_layers(self.language_model)
        for number in (*states_of, *scores_of):
            if not 0 <= number < len(layers):
                raise ModelError(
                    f"layer {number} does not exist in a backbone of {len(layers)} layers"
                )
        with scores_kept([layers[number] for number in scores_of]) as kept:
            output = self._run(
                input_ids_UL, attention_mask_UL, output_hidden_states=bool(states_of)
            )
        for scores in kept:
            if len(scores) != 1:
                raise ModelError(
                    "attention scores are not available from a backbone of type "
                    f"{self.language_model.config.model_type!r}: a layer computes {len(scores)} "
                    "softmaxes over [texts, heads, tokens, tokens], expected 1; use a backbone "
                    "of another family"
                )
        states = tuple(output.hidden_states[number + 1] for number in states_of)
        return output.last_hidden_state, states, tuple(scores for (scores,) in kept)

    def _run(self, input_ids_UL: Tensor, attention_mask_UL: Tensor, **wanted: bool) -> Any:
        mask = self._prepared(attention_mask_UL)
        with self._naming_family(attention_mask_UL):
            return self.language_model(input_ids=input_ids_UL, attention_mask=mask, **wanted)

    def cut(self, num_below: int) -> None:
        """Prepare :meth:`below` and :meth:`above`; :meth:`forward` stays unchanged.

        Args:
            num_below: Layers below the cut.

        Raises:
            ModelError: See :class:`trainer.models.split.LayerSplit`.
        """
        self.split = LayerSplit(self.language_model, num_below)

    def below(self, input_ids_UL: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Return states ``[U, L, D]`` at the cut; arguments and errors as for :meth:`forward`."""
        assert self.split is not None
        mask = self._prepared(attention_mask_UL)
        with self._naming_family(attention_mask_UL):
            return self.split.below(input_ids_UL, mask)

    def above(self, states_ULD: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Compute the states of the last layer from those at the cut.

        Args:
            states_ULD: ``[U, L, D]``, from :meth:`below`; any finite value where the mask is False.
            attention_mask_UL: bool ``[U, L]``.

        Returns:
            ``[U, L, D]``.
        """
        assert self.split is not None
        mask = self._prepared(attention_mask_UL)
        with self._naming_family(attention_mask_UL):
            return self.split.above(states_ULD, mask)

    @contextmanager
    def _naming_family(self, mask_UL: Tensor) -> Iterator[None]:
        """Turn an error inside a family's forward pass into one line that names the family.

        Out-of-memory errors and communication errors are passed on, as the family does not cause
        them.
        """
        try:
            yield
        except (ModelError, torch.OutOfMemoryError, torch.distributed.DistError):
            raise
        except Exception as error:  # families raise errors of all kinds
            num_texts, length = mask_UL.shape
            family = self.language_model.config.model_type
            raise ModelError(
                f"a backbone of type {family!r} cannot encode {num_texts} texts of {length} "
                f"tokens: {first_line(error)}; use other lengths, or a backbone of another family"
            ) from error

    def _prepared(self, mask_UL: Tensor) -> Tensor:
        """Return the mask in the form that the language model takes.

        With 0 and 1 as from tokenizers (some families compute ``1 - mask``), or with the bias, if
        the model has one.

        Raises:
            ModelError: L exceeds what the language model can read.
        """
        length = mask_UL.shape[1]
        if self.max_tokens is not None and length > self.max_tokens:
            raise ModelError(
                f"a text of {length} tokens is longer than the {self.max_tokens} that the "
                "backbone can read: "
                "lower data.max_title_tokens or data.max_body_tokens"
            )
        if self.rel_pos_bias is None:
            return mask_UL.long()
        return self._bias_and_padding(self.rel_pos_bias(length), mask_UL)

    @staticmethod
    def _bias_and_padding(bias_ALL: Tensor, mask_UL: Tensor) -> Tensor:
        """Return one additive mask ``[U, A, L, L]``, a view if nothing is padded."""
        num_texts = mask_UL.shape[0]
        if bool(mask_UL.all()):
            return bias_ALL.unsqueeze(0).expand(num_texts, -1, -1, -1)
        hidden_U11L = ~mask_UL[:, None, None, :]
        return bias_ALL.unsqueeze(0).masked_fill(hidden_U11L, torch.finfo(bias_ALL.dtype).min)
