"""A tiny data set with exported teachers, for tests of tasks, the teacher server and training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers.sets import make_articles, make_impressions, make_tokens

from shards.reader import ShardSet
from shards.tokens import TokenColumn
from trainer.config.flat import setting_types
from trainer.config.parts import with_parts
from trainer.config.schema import TrainConfig
from trainer.recipes.load import from_settings
from trainer.tasks.build import build
from trainer.tasks.registry import task_named

TINY_MODEL: dict[str, Any] = {
    "model.backbone.num_layers": 2,
    "model.backbone.hidden_size": 16,
    "model.backbone.num_heads": 2,
    "model.backbone.intermediate_size": 32,
    "model.backbone.max_positions": 64,
    "model.news_dim": 12,
    "model.query_dim": 8,
    "data.max_title_tokens": 10,
    "data.max_body_tokens": 20,
    "data.num_negatives": 3,
    "run.global_batch": 8,
    "run.micro_batch": 8,
}
"""Settings of a model that trains in milliseconds."""


TINY_CLICKS = TINY_MODEL | {"data.history_length": 5}
"""The same for tasks that read clicks."""


def read_by(task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of many settings, with dotted keys, that a task reads."""
    read = setting_types(with_parts(task_named(task).config, settings))
    return {key: value for key, value in settings.items() if key in read}


@dataclass(frozen=True)
class TinyWorld:
    """Shard sets in a temporary folder."""

    folder: Path
    articles: ShardSet
    tokens: TokenColumn
    impressions: ShardSet

    def config(self, task: str, **settings: Any) -> TrainConfig:
        """A configuration of ``task`` on this data; ``__`` in a keyword stands for a dot."""
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        given = {
            "task": task,
            "data.articles": str(self.articles.path),
            "run.dir": str(self.folder / "run"),
            **read_by(task, TINY_CLICKS),
        }
        if task_named(task).config.reads_clicks:
            given["data.clicks"] = str(self.impressions.path)
        given |= dotted
        return from_settings(given, where="test")

    def teacher(self, task: str, seed: int, **settings: Any) -> str:
        """Export a model with random weights, as a run of ``task`` would; returns its folder."""
        torch.manual_seed(seed)
        built = build(self.config(task, **settings))
        folder = self.folder / "teachers" / f"{task}-{seed}"
        built.export(built.module.model, folder, {})
        return str(folder)


def make_world(folder: Path, num_articles: int = 40, num_impressions: int = 60) -> TinyWorld:
    """Build articles, tokens and a click log under ``folder``."""
    articles = make_articles(folder / "articles", num_articles)
    tokens = make_tokens(articles, folder / "tokenizer")
    impressions = make_impressions(folder / "clicks", articles, num_impressions)
    return TinyWorld(folder, articles, tokens, impressions)
