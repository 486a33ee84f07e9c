"""The language model inside a news encoder, with or without UniLMv2's relative position bias.

Shape legend: U texts, L tokens, D width, A attention heads.
"""

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from trainer.errors import ModelError
from trainer.models.layers import pooler_arguments
from trainer.models.relative_position import RelativePositionBias
from trainer.models.split import LayerSplit

# Families whose attention adds a given float mask [U, A, L, L] to its scores as it is.
_TAKES_A_BIAS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
# Families that count positions from the padding id on: they read pad_token_id + 1 tokens less.
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl")


def max_tokens(config: PreTrainedConfig) -> int | None:
    """Longest text in tokens that a language model can read, or None where nothing limits it."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.model_type in _POSITIONS_AFTER_PADDING:
        # MPNet's padding index is 1 whatever its configuration says; the others' is pad_token_id.
        padding = 1 if config.model_type == "mpnet" else (config.pad_token_id or 0)
        return positions - padding - 1
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
            language_model: The model itself where it has been loaded already.

        Raises:
            ModelError: The bias is asked of a family whose attention cannot take it.
        """
        super().__init__()
        if language_model is None:
            language_model = AutoModel.from_config(config, **pooler_arguments(config))
        self.language_model = language_model
        self.max_tokens = max_tokens(config)
        self.split: LayerSplit | None = None
        self.rel_pos_bias: RelativePositionBias | None = None
        if relative_position_bias:
            if config.model_type not in _TAKES_A_BIAS:
                raise ModelError(
                    "relative_position_bias is not possible with a backbone of type "
                    f"{config.model_type!r}; "
                    f"it is with {', '.join(_TAKES_A_BIAS)} (MPNet has such a bias of its own)"
                )
            self.rel_pos_bias = RelativePositionBias(config.num_attention_heads)

    def forward(self, input_ids_UL: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """States of the last layer.

        Args:
            input_ids_UL: int64 ``[U, L]``.
            attention_mask_UL: bool ``[U, L]``, at least one True a text.

        Returns:
            ``[U, L, D]``.

        Raises:
            ModelError: L is more than the language model can read.
        """
        mask = self._prepared(attention_mask_UL)
        output = self.language_model(input_ids=input_ids_UL, attention_mask=mask)
        return output.last_hidden_state

    def cut(self, num_below: int) -> None:
        """Make :meth:`below` and :meth:`above` possible; :meth:`forward` stays as it is.

        Args:
            num_below: Layers below the cut.

        Raises:
            ModelError: See :class:`trainer.models.split.LayerSplit`.
        """
        self.split = LayerSplit(self.language_model, num_below)

    def below(self, input_ids_UL: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """States ``[U, L, D]`` at the cut; arguments and errors as of :meth:`forward`."""
        assert self.split is not None
        return self.split.below(input_ids_UL, self._prepared(attention_mask_UL))

    def above(self, states_ULD: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """States of the last layer from those at the cut.

        Args:
            states_ULD: ``[U, L, D]``, of :meth:`below`; anything finite where the mask is False.
            attention_mask_UL: bool ``[U, L]``.

        Returns:
            ``[U, L, D]``.
        """
        assert self.split is not None
        return self.split.above(states_ULD, self._prepared(attention_mask_UL))

    def _prepared(self, mask_UL: Tensor) -> Tensor:
        """The mask as the language model takes it: with the bias, where there is one.

        Raises:
            ModelError: L is more than the language model can read.
        """
        length = mask_UL.shape[1]
        if self.max_tokens is not None and length > self.max_tokens:
            raise ModelError(
                f"a text of {length} tokens is longer than the {self.max_tokens} that the "
                "backbone can read: "
                "lower data.max_title_tokens or data.max_body_tokens"
            )
        if self.rel_pos_bias is None:
            return mask_UL
        return self._bias_and_padding(self.rel_pos_bias(length), mask_UL)

    @staticmethod
    def _bias_and_padding(bias_ALL: Tensor, mask_UL: Tensor) -> Tensor:
        """One additive mask ``[U, A, L, L]``: a view of a single bias where nothing is padded."""
        num_texts = mask_UL.shape[0]
        if bool(mask_UL.all()):
            return bias_ALL.unsqueeze(0).expand(num_texts, -1, -1, -1)
        hidden_U11L = ~mask_UL[:, None, None, :]
        return bias_ALL.unsqueeze(0).masked_fill(hidden_U11L, torch.finfo(bias_ALL.dtype).min)
