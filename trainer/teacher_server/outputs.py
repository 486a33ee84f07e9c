"""One teacher in memory, and what it says about articles and impressions."""

import numpy as np
import torch
from torch import nn

from shards.clicks import ClickColumn
from shards.reader import ShardSet
from trainer.evaluate.encode import encode_articles
from trainer.evaluate.scoring import score_impressions
from trainer.export.folder import Export
from trainer.models import Recommender


class TeacherModel:
    """A loaded teacher with the token column and the text lengths that it was trained with."""

    def __init__(
        self,
        teacher: Export,
        articles: ShardSet,
        *,
        device: str = "cpu",
        compute: str = "fp32",
        batch_tokens: int = 16384,
    ) -> None:
        self.export = teacher
        self.tokens = teacher.tokens(articles)
        self.model = teacher.load_model()
        nn.Module.to(self.model, device)
        self.device = device
        self.compute = compute
        self.batch_tokens = batch_tokens

    @property
    def news_dim(self) -> int:
        """Width of its vectors."""
        return int(self.model.config.news_dim)

    def titles(self, rows: np.ndarray) -> np.ndarray:
        """Title vectors, float32 [n, E], of article rows."""
        return self._encode(rows, "title", self.export.info["max_title_tokens"])

    def bodies(self, rows: np.ndarray) -> np.ndarray:
        """Body vectors, float32 [n, E], of article rows."""
        return self._encode(rows, "body", self.export.info["max_body_tokens"])

    def empty_title(self) -> np.ndarray:
        """Vector [E] of a title of padding alone, which the released code reads as a title."""
        length = self.export.info["max_title_tokens"]
        ids = torch.full((1, length), self.tokens.pad_id, device=self.device)
        encode = getattr(self.model, "encode_news", self.model)
        with torch.inference_mode():
            return encode(ids, torch.ones_like(ids))[0].float().cpu().numpy()

    def impressions(
        self, news_NE: np.ndarray, clicks: ClickColumn, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User vectors [n, E], scores of all candidates [K] and their offsets [n + 1] of
        impressions."""
        assert isinstance(self.model, Recommender)
        return score_impressions(
            self.model,
            news_NE,
            clicks,
            rows=rows,
            history_length=self.export.info["history_length"],
            as_teacher=True,
        )

    def _encode(self, rows: np.ndarray, field: str, max_tokens: int) -> np.ndarray:
        return encode_articles(
            self.model,
            self.tokens,
            rows,
            field,
            max_tokens,
            pad_to_max=self.export.info["pad_to_max"],
            batch_tokens=self.batch_tokens,
            device=self.device,
            precision=self.compute,
        )
