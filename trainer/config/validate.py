"""Checks of a configuration before anything is allocated: each section by itself, then the whole
run."""

import dataclasses
from collections.abc import Collection

from shards.location import is_elsewhere, refuse_keys, shown
from shards.periods import parse_period
from trainer.config.ranges import check_model, check_ranges
from trainer.config.schema import (
    BackboneConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from trainer.errors import ConfigError, UsageError

_SIZES = ("num_layers", "hidden_size", "num_heads", "intermediate_size", "max_positions")
"""Settings of ``model.backbone`` that a ``random`` one alone has: others bring their own."""


def validate(config: TrainConfig, given: Collection[str] = ()) -> None:
    """Refuse a configuration that cannot be run, naming the setting, its value and the remedy.

    Args:
        config: The run.
        given: Settings that were asked for by name, on the command line. They must have an effect
            even at their defaults, which in a recipe they may have because it lists everything.

    Raises:
        ConfigError: On the first setting that is wrong.
    """
    _check_locations(config)
    check_ranges(config)
    check_model(config.model)
    if config.model.backbone.name != "random":
        _check_no_sizes(config.model.backbone, given)
    _check_run(config)


def _check_locations(config: TrainConfig) -> None:
    for name, place in (("run.dir", config.run.dir), ("data.cache_dir", config.data.cache_dir)):
        if is_elsewhere(place or ""):
            raise ConfigError(f"{name} is {shown(place)}; expected a folder here, not a URL")
    try:
        refuse_keys(dataclasses.asdict(config))
    except UsageError as error:
        raise ConfigError(str(error)) from error


def check_batch(config: TrainConfig, world_size: int) -> int:
    """Micro-batches of one rank in an optimizer step.

    Raises:
        ConfigError: The global batch does not divide; the message shows the arithmetic.
    """
    run = config.run
    accumulation = _accumulation(config, world_size)
    if config.data.in_batch_negatives and accumulation > 1:
        raise ConfigError(
            f"data.in_batch_negatives needs the whole global batch in one forward pass, but "
            f"{run.global_batch} samples over {world_size} ranks in micro-batches of "
            f"{run.micro_batch} take {accumulation}; raise run.micro_batch to "
            f"{run.global_batch // world_size}"
        )
    return accumulation


def _accumulation(config: TrainConfig, world_size: int) -> int:
    run = config.run
    per_step = world_size * run.micro_batch
    if run.global_batch % per_step:
        sizes = range(run.micro_batch - 1, 0, -1)
        micro_batch = next((n for n in sizes if run.global_batch % (n * world_size) == 0), None)
        raise ConfigError(
            f"run.global_batch {run.global_batch} is not a multiple of {world_size} ranks x "
            f"run.micro_batch {run.micro_batch} = {per_step}; take run.global_batch "
            f"{-(-run.global_batch // per_step) * per_step}"
            f"{f' or run.micro_batch {micro_batch}' if micro_batch else ''}"
        )
    return run.global_batch // per_step


def _check_no_sizes(backbone: BackboneConfig, given: Collection[str]) -> None:
    """Someone who sets these believes that the backbone gets these sizes."""
    for name in _SIZES:
        value, default = getattr(backbone, name), getattr(BackboneConfig(), name)
        if value != default or f"model.backbone.{name}" in given:
            keep = ", or keep some of its layers: model.backbone.layers"
            raise ConfigError(
                f"model.backbone.{name} is {value}, but it is for random backbones, and "
                f"model.backbone.name is {backbone.name}, which has its own: leave it out"
                f"{keep if name == 'num_layers' else ''}"
            )


def _check_run(config: TrainConfig) -> None:
    click_task = config.task in ("finetune", "finetune_distill")
    if not config.data.articles:
        raise ConfigError("data.articles is not set: name an article shard set")
    if not config.run.dir:
        raise ConfigError("run.dir is not set: name the folder of the run")
    if click_task and not config.data.clicks:
        raise ConfigError(f"data.clicks is not set: task {config.task} reads an impression set")
    if config.teachers.logits == "stored":
        _check_logits(config)
    if config.data.in_batch_negatives and config.task != "post_train":
        raise ConfigError(f"data.in_batch_negatives is for task post_train, not {config.task}")
    _check_texts(config, click_task)
    if config.data.negatives_from == "window":
        _check_window_negatives(config)
    if not click_task:
        _check_not_clicks(config)
    if config.data.share_titles != "rank":
        _check_shared_titles(config)
    distills = config.task.endswith("distill")
    if distills and not config.teachers.models:
        raise ConfigError(
            f"teachers.models is empty: task {config.task} needs at least one teacher"
        )
    if not distills and config.teachers.models:
        raise ConfigError(f"teachers.models is set, but task {config.task} has no teachers")
    if config.teachers.follow:
        _check_follow(config)
    if config.model.frozen_states != "off":
        _check_frozen_states(config)
    if config.run.copies.rule == "list" and not config.run.copies.steps:
        raise ConfigError("run.copies.rule is list, but run.copies.steps is empty")
    _check_kept(config.run)
    _check_periods(config)
    _accumulation(config, world_size=1)


def _check_not_clicks(config: TrainConfig) -> None:
    """Settings of the click tasks are at their defaults in the others."""
    defaults = {"user_block": 1, "share_titles": "rank"}
    for name, default in defaults.items():
        value = getattr(config.data, name)
        if value != default:
            raise ConfigError(
                f"data.{name} is {value}, but task {config.task} reads no clicks: leave it at "
                f"{default}"
            )


def _check_shared_titles(config: TrainConfig) -> None:
    """Ranks share vectors only where one does not depend on the texts beside it."""
    wanted = f"data.share_titles {config.data.share_titles}"
    if config.loss.padded_slots or config.model.history_padding == "learned":
        raise ConfigError(
            f"{wanted} does not go with empty history slots that are encoded (loss.padded_slots, "
            "model.history_padding learned): leave it at rank"
        )
    if not config.model.pooling_mask and not config.data.pad_to_max:
        raise ConfigError(
            f"{wanted} without model.pooling_mask would change the vectors, which then depend on "
            "the longest text beside them: set data.pad_to_max, or leave it at rank"
        )


def _check_frozen_states(config: TrainConfig) -> None:
    model, backbone = config.model, config.model.backbone
    asked = f"model.frozen_states is {model.frozen_states}, but "
    if not config.task.startswith("finetune"):
        raise ConfigError(
            f"{asked}task is {config.task}: the column holds what click tasks read of an article; "
            "leave it off"
        )
    if model.trainable_layers is None:
        raise ConfigError(
            f"{asked}model.trainable_layers is none: every layer is trained, none is frozen; set "
            "it to how many top layers are trained, or leave model.frozen_states off"
        )
    layers = None
    if backbone.layers is not None:
        layers = len(backbone.layers)
    elif backbone.name == "random" and model.init is None:
        layers = backbone.num_layers
    if layers is not None and model.trainable_layers >= layers:
        raise ConfigError(
            f"{asked}model.trainable_layers {model.trainable_layers} leaves none of the backbone's "
            f"{layers} layers frozen; lower it, or leave model.frozen_states off"
        )
    takes_padding = {
        "data.pad_to_max true": config.data.pad_to_max,
        "model.pooling_mask false": not model.pooling_mask,
        "model.history_padding learned": model.history_padding == "learned",
        "loss.padded_slots true": config.loss.padded_slots,
    }
    for setting, is_set in takes_padding.items():
        if is_set:
            raise ConfigError(
                f"{asked}{setting} lets padding or empty slots be encoded, whose states are not "
                "stored; change it, or leave model.frozen_states off"
            )


def _check_texts(config: TrainConfig, click_task: bool) -> None:
    """What is read of an article, and how many articles of a user."""
    data, model = config.data, config.model
    if not data.news_text:
        raise ConfigError("data.news_text is empty: name at least one field, such as title")
    if len(set(data.news_text)) < len(data.news_text):
        raise ConfigError(f"data.news_text {' '.join(data.news_text)} names a field twice")
    last_k = click_task and model.user_encoder == "last_k_mean"
    if last_k and model.user_last_k > data.history_length:
        raise ConfigError(
            f"model.user_last_k {model.user_last_k} is more than data.history_length "
            f"{data.history_length}, the clicks that are read at all: raise the one or lower the "
            "other"
        )
    if model.init is None and model.backbone.name == "random":
        check_positions(config, model.backbone.max_positions)


def check_positions(config: TrainConfig, positions: int | None, num_first: int = 1) -> None:
    """Refuse texts that a backbone cannot read, before the first long one ends the run.

    Args:
        config: The run.
        positions: Longest text in tokens that its backbone reads; None where nothing limits it.
        num_first: Special tokens at the start of a text, which joined fields share.

    Raises:
        ConfigError: Naming the settings and their sum.
    """
    data = config.data
    texts: list[tuple[tuple[str, int], ...]] = [data.news_parts]
    if config.task.startswith("post_train"):
        texts = [(("title", data.max_title_tokens),), (("body", data.max_body_tokens),)]
    for parts in texts:
        tokens = sum(limit for _, limit in parts) - num_first * (len(parts) - 1)
        if positions is not None and tokens > positions:
            settings = " + ".join(f"data.max_{field}_tokens {limit}" for field, limit in parts)
            verb = "makes" if len(parts) == 1 else "make"
            raise ConfigError(
                f"{settings} {verb} texts of up to {tokens} tokens, but the backbone reads at most "
                f"{positions}: lower them, or take a backbone with more positions"
            )


def _check_logits(config: TrainConfig) -> None:
    reasons = {
        f"task is {config.task}: only post_train_distill has logits of drawn negatives (stage II "
        "stores the score of every candidate)": config.task != "post_train_distill",
        "data.in_batch_negatives takes the negatives from the batch: what they are is not known "
        "before": config.data.in_batch_negatives,
        "teachers.source is live: such teachers read no column": config.teachers.source == "live",
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"teachers.logits is stored, but {reason}; leave it at computed")


def _check_follow(config: TrainConfig) -> None:
    teachers, hang_s = config.teachers, config.run.hang_timeout_s
    if teachers.source == "live" or not teachers.models:
        raise ConfigError(
            "teachers.follow waits for stored columns, but this run reads none: leave it out"
        )
    if "://" in config.data.articles or "://" in (config.data.clicks or ""):
        raise ConfigError(
            "teachers.follow watches columns in a folder; cells that come to a set at a URL later "
            "are not seen: start once they are all there, without it"
        )
    if teachers.follow_timeout_s >= hang_s:
        raise ConfigError(
            f"teachers.follow_timeout_s {teachers.follow_timeout_s:g} is not below "
            f"run.hang_timeout_s {hang_s:g}: a rank that waits would be taken for hung; lower the "
            "one or raise the other"
        )


def _check_kept(run: RunConfig) -> None:
    if run.keep_every is not None and run.keep_every % run.checkpoint_every:
        raise ConfigError(
            f"run.keep_every {run.keep_every} is not a multiple of run.checkpoint_every "
            f"{run.checkpoint_every}: there are no checkpoints of its steps to keep; take "
            f"{-(-run.keep_every // run.checkpoint_every) * run.checkpoint_every}"
        )


def _check_periods(config: TrainConfig) -> None:
    """Bounds in time and the section ``validation``, as far as they can be checked without data."""
    data, validation, run = config.data, config.validation, config.run
    bounds = {
        "data.clicks_": (data.clicks_since, data.clicks_until),
        "validation.": (validation.since, validation.until),
    }
    for section, (since, until) in bounds.items():
        try:
            parse_period(since, until, section)
        except UsageError as error:
            raise ConfigError(str(error)) from error
    if not config.task.startswith("finetune"):
        for name, value in (
            ("data.clicks_since", data.clicks_since),
            ("data.clicks_until", data.clicks_until),
            ("validation.clicks", validation.clicks),
        ):
            if value is not None:
                raise ConfigError(
                    f"{name} is for tasks that read clicks, not {config.task}: leave it out"
                )
    if validation.clicks is None:
        _check_unused(validation)
        return
    wanted = f"valid/{validation.metric}"
    if run.best_metric not in (None, wanted):
        raise ConfigError(
            f"run.best_metric is {run.best_metric}, but this run validates, and the best step is "
            f"that of {wanted}: leave it out, or choose with validation.metric"
        )


def _check_unused(validation: ValidationConfig) -> None:
    """Someone who sets these believes that something is validated."""
    unused = {
        "since": validation.since,
        "until": validation.until,
        "patience": validation.patience,
        "max_impressions": validation.max_impressions,
    }
    for name, value in unused.items():
        if value is not None:
            raise ConfigError(
                f"validation.{name} is set, but validation.clicks is not: name the impression set "
                "to validate on"
            )


def _check_window_negatives(config: TrainConfig) -> None:
    if not config.task.startswith("post_train"):
        raise ConfigError(
            f"data.negatives_from window is for post-training; the negatives of {config.task} are "
            "candidates of the same impression: leave it at corpus"
        )
    for name in ("static_negatives", "in_batch_negatives"):
        if getattr(config.data, name):
            raise ConfigError(
                f"data.negatives_from window and data.{name} contradict each other: windows change "
                "with the epoch, and are no batch; leave one of them out"
            )
