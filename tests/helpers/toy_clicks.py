"""The real recommender at toy size under the real finetuning task, on made-up clicks."""

from dataclasses import replace
from typing import Any

import numpy as np
from helpers.tiny_models import tiny_model
from torch import nn

from shards.order import BatchRows, EpochOrder
from trainer.batch import as_tensor
from trainer.config.schema import BackboneConfig
from trainer.models.build import build_recommender
from trainer.models.parameters import set_trainable
from trainer.tasks.base import MicroBatch
from trainer.tasks.finetune.clicks import Clicks, FinetuneModule
from trainer.tasks.texts import SubBatch, Texts

VOCABULARY, ARTICLES, HISTORY, CANDIDATES = 61, 40, 6, 3


def make_task() -> nn.Module:
    """Two layers of which the upper one is trained, NRMS user encoder; no dropout."""
    backbone = BackboneConfig(
        num_layers=2,
        hidden_size=24,
        num_heads=2,
        intermediate_size=36,
        max_positions=16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    config = tiny_model(
        query_dim=10, news_dim=12, user_encoder="nrms", user_heads=2, trainable_layers=1
    )
    config = replace(config, backbone=backbone)
    model = build_recommender(config, vocab_size=VOCABULARY, pad_id=0)
    set_trainable(model, config.trainable_layers)
    return FinetuneModule(model)


class ClickToyData:
    """Users with histories of any length, none included, as arrays that follow from the row."""

    fingerprint = "toy-clicks"
    notes: tuple[str, ...] = ()

    def __init__(self, seed: int, **ignored: Any) -> None:
        self.order = EpochOrder([50, 50], "toy-clicks", seed)
        generator = np.random.Generator(np.random.Philox(5))
        self._titles = generator.integers(1, VOCABULARY, (ARTICLES, 7))
        self._lengths = generator.integers(2, 8, ARTICLES)
        self._history = generator.integers(0, ARTICLES, (100, HISTORY))
        self._clicks = generator.integers(0, HISTORY + 1, 100)
        self._candidates = generator.integers(0, ARTICLES, (100, CANDIDATES))

    def sharing_choice(self, *batch: int) -> None:
        """Nothing to choose."""

    def collate(self, batch_rows: BatchRows) -> MicroBatch:
        rows = batch_rows.rows
        slots = np.arange(HISTORY)
        mask = np.arange(7) < self._lengths[:, None]
        ids = as_tensor(np.where(mask, self._titles, 0))
        batch = Clicks(
            news=Texts((SubBatch(ids, as_tensor(mask.astype(np.int64))),)),
            history_index=as_tensor(self._history[rows]),
            history_mask=as_tensor(slots >= HISTORY - self._clicks[rows][:, None]),
            candidate_index=as_tensor(self._candidates[rows]),
        )
        return MicroBatch(batch)
