"""One teacher in memory, and its outputs for articles and impressions.

Legend: B impressions, D distinct histories, H history slots, K candidates, E news width.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from shards.clicks import ClickColumn
from shards.histories import distinct
from shards.texts import TextView
from trainer.evaluate.encode import encode_articles, inference
from trainer.export.folder import Export
from trainer.models.recommender import Recommender
from trainer.teacher_server.kinds.base import Count
from trainer.teacher_server.request import FillRequest

NewsVectors = Callable[[np.ndarray], np.ndarray]
"""float32[k, E] vectors of article rows int64[k]."""

_BATCH_IMPRESSIONS = 512


class TeacherModel:
    """A loaded teacher with its token column and the text lengths of its training."""

    def __init__(self, teacher: Export, request: FillRequest) -> None:
        """Load the teacher to the request's device."""
        self.export = teacher
        self.tokens = teacher.tokens(request.articles)
        self.model = teacher.load_model()
        nn.Module.to(self.model, request.device)
        self.device = request.device
        self.compute = request.compute
        self.batch_tokens = request.batch_tokens

    def titles(self, rows: np.ndarray, count: Count = None) -> np.ndarray:
        """Return vectors, float32 [n, E], of the articles' titles.

        If the teacher reads other fields of an article (``data.news_text`` of its run), the vectors
        are those of these fields.
        """
        return self._encode(rows, self.export.news_texts(self.tokens), count)

    def bodies(self, rows: np.ndarray, count: Count = None) -> np.ndarray:
        """Return body vectors, float32 [n, E], of article rows."""
        return self._encode(rows, self.export.body_texts(self.tokens), count)

    def empty_title(self) -> np.ndarray:
        """Return the vector [E] of a title of padding alone (the released code's empty title)."""
        length = self.export.news_texts(self.tokens).max_tokens
        ids = torch.full((1, length), self.tokens.pad_id, device=self.device)
        encode = getattr(self.model, "encode_news", self.model)
        with torch.inference_mode():
            return encode(ids, torch.ones_like(ids))[0].float().cpu().numpy()

    def impressions(
        self,
        news: NewsVectors,
        clicks: ClickColumn,
        rows: np.ndarray,
        count: Count = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute user vectors and scores of impressions; every distinct history is encoded once.

        Always in fp32, whatever the precision of the news encoder. A model that was trained with
        learned padding keeps it, as the released code does with its teachers.

        Args:
            news: Vectors of articles; requested only for articles in these impressions.
            clicks: Clicks of the impression set.
            rows: int64[B] impression rows.
            count: Called for every batch of impressions.

        Returns:
            (users float32[B, E], scores float32[K] impression after impression, offsets int64[B +
            1]).
        """
        history_BH, mask_BH = clicks.history(rows, self.export.info["history_length"])
        candidates_K, offsets = clicks.candidates(rows)
        named = np.concatenate([history_BH[mask_BH], candidates_K])
        articles = np.unique(named) if len(named) else np.zeros(1, dtype=np.int64)
        vectors_AE = torch.from_numpy(np.ascontiguousarray(news(articles), dtype=np.float32))
        places, which_B = distinct(history_BH)
        history_DH = np.searchsorted(articles, np.where(mask_BH, history_BH, articles[:1])[places])
        with inference(self.model):
            users_DE = self._users(vectors_AE, history_DH, mask_BH[places])
            users_BE = users_DE[torch.from_numpy(which_B)]
            scores_K = np.empty(len(candidates_K), dtype=np.float32)
            within_K = torch.from_numpy(np.searchsorted(articles, candidates_K))
            for start in range(0, len(rows), _BATCH_IMPRESSIONS):
                stop = min(start + _BATCH_IMPRESSIONS, len(rows))
                begin, end = int(offsets[start]), int(offsets[stop])
                counts = torch.from_numpy(np.diff(offsets[start : stop + 1]))
                each_KE = users_BE[start:stop].repeat_interleave(counts, dim=0).to(self.device)
                shown_KE = vectors_AE[within_K[begin:end]].to(self.device)
                scores = self._recommender.score(shown_KE.unsqueeze(1), each_KE)
                scores_K[begin:end] = scores[:, 0].cpu().numpy()
                if count is not None:
                    count(stop - start)
        return users_BE.numpy(), scores_K, offsets

    def _users(
        self, vectors_AE: torch.Tensor, history_DH: np.ndarray, mask_DH: np.ndarray
    ) -> torch.Tensor:
        """Return vectors [D, E] of users on the CPU, from their histories."""
        learned = self._recommender.config.history_padding == "learned"
        users = [torch.zeros(0, vectors_AE.shape[1])]
        for start in range(0, len(history_DH), _BATCH_IMPRESSIONS):
            chosen = slice(start, start + _BATCH_IMPRESSIONS)
            history_DHE = vectors_AE[torch.from_numpy(history_DH[chosen])].to(self.device)
            mask = torch.from_numpy(mask_DH[chosen]).to(self.device)
            encoded = self._recommender.encode_users(history_DHE, mask, False if learned else None)
            users.append(encoded.float().cpu())
        return torch.cat(users)

    @property
    def _recommender(self) -> Recommender:
        assert isinstance(self.model, Recommender)
        return self.model

    def _encode(self, rows: np.ndarray, texts: TextView, count: Count) -> np.ndarray:
        return encode_articles(
            self.model,
            texts,
            rows,
            pad_to_max=self.export.info["pad_to_max"],
            batch_tokens=self.batch_tokens,
            device=self.device,
            precision=self.compute,
            on_batch=count,
        )
