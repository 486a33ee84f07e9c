"""News encoder: language model, pooling, Linear. The same one reads titles and bodies.

With a backbone that is cut (:meth:`trainer.models.backbone.Backbone.cut`) it can also start from
the states at the cut.

Shape legend: U texts, L tokens, D width of the language model, A its heads, E news width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.models.backbone import Backbone
from trainer.models.configuration import NewsEncoderConfig
from trainer.models.strict import StrictModel


class EncoderOutput(NamedTuple):
    """What a news encoder says about texts; a tuple, so that ZeRO-3 finds its tensors."""

    vectors: Tensor
    """``[U, E]``."""
    states: tuple[Tensor, ...]
    """``[U, L, D]`` after each layer that was asked for."""
    scores: tuple[Tensor, ...]
    """``[U, A, L, L]`` (query, key) of each layer that was asked for, before the softmax, position
    bias included; very low where the key is no token."""


class NewsEncoder(StrictModel):
    """Turns token ids into one vector a text (the paper's news model; no norm, no activation)."""

    config: NewsEncoderConfig
    base_model_prefix = "news_encoder"
    main_input_name = "input_ids_UL"
    kind = "news_encoder"

    def __init__(
        self, config: NewsEncoderConfig, language_model: PreTrainedModel | None = None
    ) -> None:
        """Build the encoder.

        Args:
            config: Its configuration.
            language_model: A language model with its weights; None builds one with random weights.
        """
        super().__init__(config)
        self.backbone = Backbone(
            config.language_model, config.relative_position_bias, language_model
        )
        # transformers may copy a configuration on its way; the export must hold the one in use.
        config.backbone = self.backbone.language_model.config
        width = config.language_model.hidden_size
        self.pooling = config.pooling_part.build(width, config.query_dim)
        self.dense = nn.Linear(width, config.news_dim)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids_UL: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Encode texts.

        A text without a single token (an empty history slot of the released code) would leave
        attention nothing to attend to. Its first position then counts, whatever the padded length;
        with ``pooling_mask`` off all its positions do, which is what the released code's constant
        mask comes to.

        Args:
            input_ids_UL: int64 ``[U, L]``.
            attention_mask_UL: ``[U, L]``, nonzero where there is a token.

        Returns:
            ``[U, E]``, fp32 even under autocast.

        Raises:
            ModelError: L is more than the language model can read.
        """
        mask_UL = self._attended(attention_mask_UL)
        return self._pooled(self.backbone(input_ids_UL, mask_UL), mask_UL)

    def encode(
        self,
        input_ids_UL: Tensor,
        attention_mask_UL: Tensor,
        states_of: Sequence[int] = (),
        scores_of: Sequence[int] = (),
    ) -> EncoderOutput:
        """Encode texts, and say what some layers computed; the vectors are those of
        :meth:`forward`.

        Args:
            input_ids_UL: int64 ``[U, L]``.
            attention_mask_UL: ``[U, L]``, nonzero where there is a token.
            states_of: Layers, from 0, whose hidden states are wanted: transformers'
                ``hidden_states[n + 1]``.
            scores_of: Layers, from 0, whose attention scores are wanted.

        Raises:
            ModelError: As :meth:`forward`; or there is no such layer, or it gives no scores.
        """
        mask_UL = self._attended(attention_mask_UL)
        last_ULD, states, scores = self.backbone.look_inside(
            input_ids_UL, mask_UL, states_of, scores_of
        )
        return EncoderOutput(self._pooled(last_ULD, mask_UL), states, scores)

    def encode_states(self, states_ULD: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Encode texts from the states of their tokens at the backbone's cut.

        Args:
            states_ULD: ``[U, L, D]`` of any floating type; anything finite where there is no token.
            attention_mask_UL: ``[U, L]``, nonzero where there is a token; at least one a text.

        Returns:
            As :meth:`forward` of the same texts.
        """
        mask_UL = attention_mask_UL.bool()
        given_ULD = states_ULD.to(self.dense.weight.dtype)
        return self._pooled(self.backbone.above(given_ULD, mask_UL), mask_UL)

    def _attended(self, attention_mask_UL: Tensor) -> Tensor:
        """bool ``[U, L]``, where there is something to attend to; at least one a text."""
        mask_UL = attention_mask_UL.bool()
        empty_U1 = ~mask_UL.any(dim=1, keepdim=True)
        if self.config.pooling_mask:
            first_L = torch.arange(mask_UL.shape[1], device=mask_UL.device) == 0
            return mask_UL | (empty_U1 & first_L)
        return mask_UL | empty_U1

    def _pooled(self, states_ULD: Tensor, mask_UL: Tensor) -> Tensor:
        pooled_UD: Tensor = self.pooling(states_ULD, mask_UL if self.config.pooling_mask else None)
        with torch.autocast(device_type=pooled_UD.device.type, enabled=False):
            vectors_UE: Tensor = self.dense(pooled_UD.to(self.dense.weight.dtype))
        return vectors_UE.to(pooled_UD.dtype)
