"""From a configuration to a task: open the data, build the model, join them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from shards.cache import GIB, CacheSettings
from shards.clicks import ClickColumn
from shards.reader import ShardSet
from shards.remote import Patience
from shards.tokens import TokenColumn
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError, ModelError
from trainer.export.folder import export_model, load_export
from trainer.models import build_news_encoder, build_recommender
from trainer.tasks.base import TaskData
from trainer.tasks.clicks import ClickData, FinetuneDistillTask, FinetuneTask
from trainer.tasks.distill import teacher_names
from trainer.tasks.post_train import PostTrainData, PostTrainDistillTask, PostTrainTask
from trainer.tasks.texts import grouping_of
from trainer.teacher_server.live import LiveClickSignals, LiveTextSignals
from trainer.teacher_server.signals import (
    ClickSignals,
    StoredClickSignals,
    StoredTextSignals,
    TextSignals,
)

Exporter = Callable[[nn.Module, Path, dict[str, Any]], object]


@dataclass(frozen=True)
class BuiltTask:
    """A task ready to be trained."""

    module: nn.Module
    """The module half, with the trained model as ``.model``."""
    data: TaskData
    """The data half."""
    export: Exporter
    """Writes the trained model as an export: ``export(model, folder, info)``."""


@dataclass(frozen=True)
class Sources:
    """The opened data of a run; cheap to open, and enough for a dry run."""

    articles: ShardSet
    tokens: TokenColumn
    impressions: ShardSet | None
    clicks: ClickColumn | None


def open_sources(config: TrainConfig) -> Sources:
    """Open the shard sets and columns that a run reads.

    Raises:
        DataError: A set is missing or of the wrong kind, or clicks refer to other articles.
        ColumnError: A column is missing or does not match.
    """
    data = config.data
    patience = Patience(attempts=data.fetch_attempts)
    cache = CacheSettings(data.cache_dir, int(data.cache_gib * GIB), patience)
    # Training reads columns alone, and these are tied to the shards as they were.
    articles = ShardSet.open(data.articles, cache=cache, check_files=False)
    _check_kind(articles, "articles", "data.articles")
    tokens = TokenColumn.open(articles, config.data.tokens)
    if config.data.clicks is None or config.task.startswith("post_train"):
        return Sources(articles, tokens, None, None)
    impressions = ShardSet.open(config.data.clicks, cache=cache)
    _check_kind(impressions, "impressions", "data.clicks")
    if impressions.manifest.articles_fingerprint != articles.fingerprint:
        raise ConfigError(
            f"data.clicks {impressions.path} was built over other articles "
            f"({str(impressions.manifest.articles_fingerprint)[:12]}…) than data.articles "
            f"{articles.path} ({articles.fingerprint[:12]}…); build it again: tnr shards build "
            f"--clicks LOG --article-set {articles.path} --out {impressions.path}"
        )
    return Sources(articles, tokens, impressions, ClickColumn.open(impressions))


def build(config: TrainConfig, sources: Sources | None = None) -> BuiltTask:
    """Build the task of a run. Initial weights follow torch's random state: seed it before.

    Raises:
        TinyNewsRecError: Data, teachers or the initial model are missing or do not fit each other.
    """
    opened = sources or open_sources(config)
    _check_init(config, opened.tokens)
    sizes = {"vocab_size": opened.tokens.vocab_size, "pad_id": opened.tokens.pad_id}
    names = teacher_names(config.teachers.models)
    module: nn.Module
    if opened.clicks is None:
        text = _text_signals(config, opened)
        encoder = build_news_encoder(config.model, **sizes)
        if text is None:
            module = PostTrainTask(encoder, in_batch_negatives=config.data.in_batch_negatives)
        else:
            module = PostTrainDistillTask(encoder, text.dims, config.loss, names)
        task_data = open_data(config, opened, text=text)
    else:
        signals = _click_signals(config, opened)
        recommender = build_recommender(config.model, **sizes)
        if signals is None:
            module = FinetuneTask(recommender)
        else:
            module = FinetuneDistillTask(recommender, signals.dims, config.loss, names)
        task_data = open_data(config, opened, clicks=signals)
    return BuiltTask(module, task_data, exporter(config, opened.tokens))


def open_data(
    config: TrainConfig,
    opened: Sources,
    *,
    text: TextSignals | None = None,
    clicks: ClickSignals | None = None,
) -> TaskData:
    """The data half of a task; without what teachers say, enough for a dry run."""
    data, seed = config.data, config.run.seed
    if opened.impressions is None or opened.clicks is None:
        grouping = grouping_of(config, empty_slots=False)
        return PostTrainData(opened.articles, opened.tokens, data, seed, text, grouping)
    empty_slots = config.loss.padded_slots or config.model.history_padding == "learned"
    return ClickData(
        opened.impressions,
        opened.clicks,
        opened.tokens,
        data,
        seed,
        empty_slots=empty_slots,
        signals=clicks,
        grouping=grouping_of(config, empty_slots=empty_slots),
    )


def exporter(config: TrainConfig, tokens: TokenColumn) -> Exporter:
    """A function that exports a model with what its readers must know about its texts."""
    click_task = config.task.startswith("finetune")
    described = {
        "task": config.task,
        "tokenizer_sha256": tokens.tokenizer_sha256,
        "max_title_tokens": config.data.max_title_tokens,
        "max_body_tokens": None if click_task else config.data.max_body_tokens,
        "history_length": config.data.history_length if click_task else None,
        "pad_to_max": config.data.pad_to_max,
        "model_settings": {
            "pooling": config.model.pooling,
            "pooling_mask": config.model.pooling_mask,
            "query_dim": config.model.query_dim,
            "news_dim": config.model.news_dim,
            "user_encoder": config.model.user_encoder if click_task else None,
            "history_padding": config.model.history_padding if click_task else None,
        },
    }

    def export(model: nn.Module, folder: Path, info: dict[str, Any]) -> object:
        assert isinstance(model, PreTrainedModel)
        return export_model(model, folder, tokens.tokenizer_dir, described | info)

    return export


def _text_signals(config: TrainConfig, opened: Sources) -> TextSignals | None:
    teachers = config.teachers
    if not teachers.models:
        return None
    if teachers.source == "live":
        return LiveTextSignals(opened.articles, teachers.models)
    return StoredTextSignals(opened.articles, teachers.models, teachers.dtype, teachers.compute)


def _click_signals(config: TrainConfig, opened: Sources) -> ClickSignals | None:
    teachers = config.teachers
    if not teachers.models or opened.impressions is None:
        return None
    if teachers.source == "live":
        return LiveClickSignals(opened.articles, opened.impressions, teachers.models)
    return StoredClickSignals(
        opened.articles, opened.impressions, teachers.models, teachers.dtype, teachers.compute
    )


def _check_kind(shard_set: ShardSet, kind: str, setting: str) -> None:
    if shard_set.kind != kind:
        raise ConfigError(f"{setting} {shard_set.path} holds {shard_set.kind}, expected {kind}")


def _check_init(config: TrainConfig, tokens: TokenColumn) -> None:
    """Weights and token ids must come from one tokenizer, or training starts from noise in
    silence."""
    if config.model.init is not None:
        init = load_export(config.model.init)
        found, name = init.info["tokenizer_sha256"], config.model.init
    elif config.model.backbone.name != "random":
        from shards.tokenizer import load_tokenizer, tokenizer_sha256

        name = config.model.backbone.name
        found = tokenizer_sha256(load_tokenizer(name))
    else:
        return
    if found != tokens.tokenizer_sha256:
        raise ModelError(
            f"the tokens of {config.data.articles} were made with tokenizer "
            f"{tokens.tokenizer_sha256[:12]}…, but {name} has {found[:12]}…; tokenize with it: "
            f"tnr shards tokenize {config.data.articles} --tokenizer {name}"
        )
