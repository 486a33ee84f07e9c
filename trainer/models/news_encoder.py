"""News encoder: language model, pooling, Linear; the same encoder reads titles and bodies.

With a cut backbone (:meth:`trainer.models.backbone.Backbone.cut`), it can also start from the
states at the cut.

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
    """Output of a news encoder for texts; a tuple, so that ZeRO-3 finds its tensors."""

    vectors: Tensor
    """``[U, E]``."""
    states: tuple[Tensor, ...]
    """``[U, L, D]`` after each requested layer."""
    scores: tuple[Tensor, ...]
    """``[U, A, L, L]`` (query, key) of each requested layer, before the softmax, position bias
    included; very low where the key is padding."""


class NewsEncoder(StrictModel):
    """Encoder from token ids to one vector per text (the paper's; no norm, no activation)."""

    config: NewsEncoderConfig
    base_model_prefix = "news_encoder"
    main_input_name = "input_ids_UL"
    kind = "news_encoder"

    def __init__(
        self, config: NewsEncoderConfig, language_model: PreTrainedModel | None = None
    ) -> None:
        """Build the encoder.

        Args:
            config: Configuration of the encoder.
            language_model: A language model with its weights; None builds one with random weights.
        """
        super().__init__(config)
        self.backbone = Backbone(
            config.language_model, config.relative_position_bias, language_model
        )
        # transformers may copy the configuration; the export must hold the one in use.
        config.backbone = self.backbone.language_model.config
        width = config.language_model.hidden_size
        self.pooling = config.pooling_part.build(width, config.query_dim)
        self.dense = nn.Linear(width, config.news_dim)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids_UL: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Encode texts.

        A text without tokens (an empty history slot of the released code) would leave attention
        nothing to attend to. Its first position then counts, whatever the padded length; with
        ``pooling_mask`` off, all its positions count, which equals the released code's constant
        mask.

        Args:
            input_ids_UL: int64 ``[U, L]``.
            attention_mask_UL: ``[U, L]``, nonzero at tokens.

        Returns:
            ``[U, E]``, fp32 even under autocast.

        Raises:
            ModelError: L exceeds what the language model can read.
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
        """Encode texts as :meth:`forward`, and return what some layers computed.

        Args:
            input_ids_UL: int64 ``[U, L]``.
            attention_mask_UL: ``[U, L]``, nonzero at tokens.
            states_of: Layers, from 0, whose hidden states to return: transformers'
                ``hidden_states[n + 1]``.
            scores_of: Layers, from 0, whose attention scores to return.

        Raises:
            ModelError: As for :meth:`forward`; or a layer does not exist or has no scores.
        """
        mask_UL = self._attended(attention_mask_UL)
        last_ULD, states, scores = self.backbone.look_inside(
            input_ids_UL, mask_UL, states_of, scores_of
        )
        return EncoderOutput(self._pooled(last_ULD, mask_UL), states, scores)

    def encode_states(self, states_ULD: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Encode texts from the states of their tokens at the backbone's cut.

        Args:
            states_ULD: ``[U, L, D]`` of any floating type; any finite value at padding.
            attention_mask_UL: ``[U, L]``, nonzero at tokens; at least one token per text.

        Returns:
            As :meth:`forward` for the same texts.
        """
        mask_UL = attention_mask_UL.bool()
        given_ULD = states_ULD.to(self.dense.weight.dtype)
        return self._pooled(self.backbone.above(given_ULD, mask_UL), mask_UL)

    def _attended(self, attention_mask_UL: Tensor) -> Tensor:
        """Return the positions to attend to, bool ``[U, L]``; at least one per text."""
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
