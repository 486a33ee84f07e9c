"""From a configuration to a task: open the data, build the model, join them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from shards.texts import TextView
from shards.tokens import TokenColumn
from trainer.config.schema import TrainConfig
from trainer.config.validate import check_positions
from trainer.errors import ColumnError, ModelError
from trainer.export.folder import export_model, load_export
from trainer.frozen.states import StateView
from trainer.frozen.texts import frozen_texts
from trainer.models import build_news_encoder, build_recommender
from trainer.models.probe import freeze_idle
from trainer.tasks.base import TaskData
from trainer.tasks.clicks import ClickData, FinetuneDistillTask, FinetuneTask
from trainer.tasks.distill import teacher_names
from trainer.tasks.live import LiveClickSignals, LiveTextSignals
from trainer.tasks.post_train import PostTrainData, PostTrainDistillTask, PostTrainTask
from trainer.tasks.sources import Sources, open_sources, reads_vectors, stored_logits
from trainer.tasks.texts import grouping_of
from trainer.tasks.validation import ClickValidation, open_validation
from trainer.teacher_server.follow import Follower
from trainer.teacher_server.kinds.clicks import StoredClickSignals
from trainer.teacher_server.kinds.logits import StoredLogits
from trainer.teacher_server.kinds.text import StoredTextSignals
from trainer.teacher_server.signals import TeacherSignals

__all__ = [
    "BuiltTask",
    "Sources",
    "build",
    "exporter",
    "open_data",
    "open_sources",
    "open_validation",
]

Exporter = Callable[[nn.Module, Path, dict[str, Any]], object]

_LONGEST_WAIT = 0.9
"""Share of ``run.hang_timeout_s`` that a rank waits for a teacher's cell at most: then it is the
wait that ends the run, with its reason, and not the watch over ranks that hang."""


@dataclass(frozen=True)
class BuiltTask:
    """A task ready to be trained."""

    module: nn.Module
    """The module half, with the trained model as ``.model``."""
    data: TaskData
    """The data half."""
    export: Exporter
    """Writes the trained model as an export: ``export(model, folder, info)``."""
    validation: ClickValidation | None = None
    """What the model is measured on while it trains."""


def build(
    config: TrainConfig,
    sources: Sources | None = None,
    tick: Callable[[], object] = lambda: None,
) -> BuiltTask:
    """Build the task of a run. Initial weights follow torch's random state: seed it before.

    Args:
        config: The run.
        sources: Its data, where they are open already.
        tick: Called again and again while a column is filled, which may take hours.

    Raises:
        TinyNewsRecError: Data, teachers or the initial model are missing or do not fit each other.
    """
    opened = sources or open_sources(config)
    _check_init(config, opened.tokens)
    num_first = len(opened.tokens.prefix_ids)
    sizes = {"vocab_size": opened.tokens.vocab_size, "pad_id": opened.tokens.pad_id}
    signals = open_signals(config, opened)
    names = teacher_names(config.teachers.models)
    module: nn.Module
    states = None
    if opened.clicks is None:
        encoder = build_news_encoder(config.model, **sizes)
        check_positions(config, encoder.backbone.max_tokens, num_first)
        idle = freeze_idle(encoder.backbone)
        if signals is None:
            module = PostTrainTask(encoder, in_batch_negatives=config.data.in_batch_negatives)
        else:
            module = PostTrainDistillTask(encoder, signals.dims, config.loss, names, signals.say)
    else:
        recommender = build_recommender(config.model, **sizes)
        backbone = recommender.news_encoder.backbone
        check_positions(config, backbone.max_tokens, num_first)
        idle = freeze_idle(backbone)
        if config.model.frozen_states != "off":
            states = frozen_texts(
                config, recommender.news_encoder, news_texts(config, opened.tokens), tick=tick
            )
        if signals is None:
            module = FinetuneTask(recommender)
        else:
            module = FinetuneDistillTask(recommender, signals.dims, config.loss, names, signals.say)
    task_data = open_data(config, opened, signals, states)
    task_data.notes += [idle] if idle else []
    validation = open_validation(config, opened, task_data)
    return BuiltTask(module, task_data, exporter(config, opened.tokens), validation)


def open_data(
    config: TrainConfig,
    opened: Sources,
    signals: TeacherSignals[Any, Any] | None = None,
    states: StateView | None = None,
) -> TaskData:
    """The data half of a task; without what teachers and frozen layers say, enough for a dry
    run."""
    data, seed = config.data, config.run.seed
    if opened.impressions is None or opened.clicks is None:
        grouping = grouping_of(config, empty_slots=False)
        return PostTrainData(opened.articles, opened.tokens, data, seed, signals, grouping)
    empty_slots = config.loss.padded_slots or config.model.history_padding == "learned"
    return ClickData(
        opened.impressions,
        opened.clicks,
        opened.tokens,
        dataclasses.replace(data, history_length=config.clicks_read),
        seed,
        empty_slots=empty_slots,
        signals=signals,
        grouping=grouping_of(config, empty_slots=empty_slots),
        states=states,
    )


def news_texts(config: TrainConfig, tokens: TokenColumn) -> TextView:
    """What a click task reads of an article."""
    return tokens.view(*config.data.news_parts)


def exporter(config: TrainConfig, tokens: TokenColumn) -> Exporter:
    """A function that exports a model with what its readers must know about its texts."""
    click_task = config.task.startswith("finetune")
    data, model = config.data, config.model
    settings = {
        "pooling": model.pooling,
        "pooling_mask": model.pooling_mask,
        "query_dim": model.query_dim,
        "news_dim": model.news_dim,
        "user_encoder": model.user_encoder if click_task else None,
        "history_padding": model.history_padding if click_task else None,
    }
    if click_task and model.user_encoder == "last_k_mean":
        settings["user_last_k"] = model.user_last_k
    parts = data.news_parts if click_task else (("title", data.max_title_tokens),)
    described = {
        "task": config.task,
        "tokenizer_sha256": tokens.tokenizer_sha256,
        "news_text": [list(part) for part in parts],
        "max_title_tokens": data.max_title_tokens,
        "max_body_tokens": None if click_task else data.max_body_tokens,
        "history_length": config.clicks_read if click_task else None,
        "pad_to_max": data.pad_to_max,
        "model_settings": settings,
    }

    def export(model: nn.Module, folder: Path, info: dict[str, Any]) -> object:
        assert isinstance(model, PreTrainedModel)
        return export_model(model, folder, tokens.tokenizer_dir, described | info)

    return export


def open_signals(config: TrainConfig, opened: Sources) -> TeacherSignals[Any, Any] | None:
    """What the teachers of a distillation say; None of a task without teachers.

    Raises:
        ColumnError: A teacher's columns are missing, not complete, or of other settings; or its
            texts of articles that the run reads are empty.
    """
    teachers, articles, impressions = config.teachers, opened.articles, opened.impressions
    if not teachers.models:
        return None
    _check_teachers_texts(teachers.models, opened)
    if teachers.source == "live":
        if impressions is None:
            return LiveTextSignals(articles, teachers.models)
        return LiveClickSignals(articles, impressions, teachers.models)
    if teachers.logits == "stored":
        logits = stored_logits(config, opened)
        return StoredLogits(logits, with_vectors=reads_vectors(config), follower=_follower(config))
    stored = (teachers.models, teachers.dtype, teachers.compute, _follower(config))
    if impressions is None:
        return StoredTextSignals(articles, *stored)
    return StoredClickSignals(articles, impressions, *stored)


def _check_teachers_texts(models: Sequence[str], opened: Sources) -> None:
    """A teacher with a tokenizer of its own has its own token column, which may have been made
    while articles were damaged that have been mended since."""
    for teacher in map(load_export, models):
        damaged = teacher.damaged_rows(opened.articles)
        empty = np.setdiff1d(damaged, opened.tokens.skipped_rows)
        if len(empty):
            raise ColumnError(
                f"the tokens of teacher {teacher.folder} were made while {len(empty)} articles "
                f"were damaged that this run reads (row {empty[0]} first): tokenize "
                f"{opened.articles.location} again with its tokenizer, then fill its columns"
            )


def _follower(config: TrainConfig) -> Follower | None:
    """Waits for cells that are being filled, where the run asks for it."""
    if not config.teachers.follow:
        return None
    follower = Follower(config.teachers.follow_timeout_s, _LONGEST_WAIT * config.run.hang_timeout_s)
    if config.data.negatives_from == "corpus" and reads_vectors(config):
        follower.note(
            "teachers.follow: a batch draws articles from the whole corpus "
            f"(data.negatives_from {config.data.negatives_from}), so the first steps wait for "
            "almost all cells of articles; only stage I with data.negatives_from window trains on "
            "what is there"
        )
    return follower


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
