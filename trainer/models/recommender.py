"""News encoder and user encoder together: scores of candidate articles for a user.

Shape legend: B users, H history slots, C candidates, U texts, L tokens,
D width of the language model, E news width.
"""

from torch import Tensor, nn

from trainer.models.configuration import RecommenderConfig
from trainer.models.news_encoder import NewsEncoder
from trainer.models.strict import StrictModel
from trainer.models.user_model import UserModel


class Recommender(StrictModel):
    """The paper's PLM-NR: a score is the dot product of a candidate's and a user's vector."""

    config: RecommenderConfig
    base_model_prefix = "recommender"
    main_input_name = "input_ids_UL"
    kind = "recommender"

    def __init__(self, config: RecommenderConfig, news_encoder: NewsEncoder | None = None) -> None:
        """Build the model.

        Args:
            config: Configuration of the model.
            news_encoder: A news encoder with its weights; None builds one with random weights.
        """
        super().__init__(config)
        if news_encoder is None:
            news_encoder = NewsEncoder(config.news_config)
        self.news_encoder = news_encoder
        config.news_encoder = news_encoder.config
        self.user_encoder = UserModel(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise like the parent, and ``pad_doc`` uniformly in (-1, 1) (released code)."""
        super()._init_weights(module)
        if isinstance(module, UserModel):
            nn.init.uniform_(module.pad_doc, -1.0, 1.0)

    def encode_news(self, input_ids_UL: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Return vectors ``[U, E]`` of texts; see :meth:`NewsEncoder.forward`."""
        return self.news_encoder(input_ids_UL, attention_mask_UL)

    def encode_states(self, states_ULD: Tensor, attention_mask_UL: Tensor) -> Tensor:
        """Return vectors ``[U, E]`` of texts; see :meth:`NewsEncoder.encode_states`."""
        return self.news_encoder.encode_states(states_ULD, attention_mask_UL)

    def encode_users(
        self, history_BHE: Tensor, mask_BH: Tensor, mask_history: bool | None = None
    ) -> Tensor:
        """Return vectors ``[B, E]`` of users; see :meth:`UserModel.forward`."""
        return self.user_encoder(history_BHE, mask_BH, mask_history)

    def score(self, candidates_BCE: Tensor, user_BE: Tensor) -> Tensor:
        """Return dot products, never in less than the vectors' own precision.

        Args:
            candidates_BCE: ``[B, C, E]``.
            user_BE: ``[B, E]``.

        Returns:
            ``[B, C]`` raw scores (the paper's y-hat), not probabilities.
        """
        return (candidates_BCE * user_BE.unsqueeze(1)).sum(dim=-1)

    def forward(
        self,
        input_ids_UL: Tensor,
        attention_mask_UL: Tensor,
        history_index_BH: Tensor,
        history_mask_BH: Tensor,
        candidate_index_BC: Tensor,
    ) -> Tensor:
        """Score candidates; every distinct text is encoded once.

        Args:
            input_ids_UL: int64 ``[U, L]``, the distinct texts.
            attention_mask_UL: ``[U, L]``, nonzero at tokens.
            history_index_BH: int64 ``[B, H]``, index into the U texts for each slot (any value in
                empty ones).
            history_mask_BH: ``[B, H]``, nonzero in slots with a click.
            candidate_index_BC: int64 ``[B, C]``, index into the U texts for each candidate.

        Returns:
            ``[B, C]`` raw scores.
        """
        news_UE = self.encode_news(input_ids_UL, attention_mask_UL)
        users_BE = self.encode_users(news_UE[history_index_BH], history_mask_BH)
        return self.score(news_UE[candidate_index_BC], users_BE)
