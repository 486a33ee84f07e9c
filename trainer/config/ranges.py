"""Which values single settings may have, before anything is allocated."""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

from trainer.config.schema import BackboneConfig, ModelConfig, TrainConfig
from trainer.errors import ConfigError

MOST_INT, MOST_FLOAT = 2**31 - 1, 1e9
"""Largest number of a setting that has no limit of its own: a count in 32 bits, and far below the
largest number of fp32."""

AT_MOST = {
    "run.seed": 2**63 - 1,
    "data.workers": 1024,
    "model.backbone.num_layers": 4096,
    "model.backbone.num_heads": 65_536,
    "model.backbone.hidden_size": 1 << 20,
    "model.backbone.intermediate_size": 1 << 22,
    "model.backbone.max_positions": 1 << 24,
    "model.news_dim": 1 << 20,
    "model.query_dim": 1 << 20,
}
"""Limits of single settings: what torch's seeds, a process's threads and models can be."""


def check_ranges(config: TrainConfig) -> None:
    """Refuse numbers that are too small or too large, NaN included.

    Raises:
        ConfigError: Naming the first such setting, its value and what was expected.
    """
    for name, (value, least) in _at_least(config).items():
        if value is not None and not value >= least:
            raise ConfigError(f"{name} is {value}; expected at least {least}")
    for name, positive in _above_zero(config).items():
        if positive is not None and not positive > 0:
            raise ConfigError(f"{name} is {positive}; expected more than 0")
    for name, share in _below_one(config).items():
        if share is not None and not 0 <= share < 1:
            raise ConfigError(f"{name} is {share}; expected at least 0 and less than 1")
    for name, number in numbers(config):
        _check_number(name, number)
    steps = config.run.profile_steps
    if list(steps) != sorted({step for step in steps if step > 0}):
        raise ConfigError(
            f"run.profile_steps is {steps}; expected distinct steps from 1, lowest first"
        )


def numbers(section: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers of a section and of those inside it, by dotted name; those of a tuple each."""
    for field in dataclasses.fields(section):
        name, value = f"{prefix}{field.name}", getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{name}.")
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                yield name, item


def _check_number(name: str, number: int | float) -> None:
    if isinstance(number, float) and not math.isfinite(number):
        raise ConfigError(f"{name} is {number}; expected a finite number")
    most = AT_MOST.get(name, MOST_INT if isinstance(number, int) else MOST_FLOAT)
    if number > most:
        raise ConfigError(f"{name} is {number}; expected at most {most}")


def check_memory(config: TrainConfig, memory: int | None = None) -> None:
    """Refuse sizes that this machine cannot hold at all, whatever else is in its memory.

    Args:
        config: The run.
        memory: Bytes of this machine; None asks the operating system.

    Raises:
        ConfigError: The weights of one rank, or the rows of one micro-batch, take more; with the
            settings and the sum.
    """
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    model, backbone, data = config.model, config.model.backbone, config.data
    width = backbone.hidden_size if backbone.name == "random" and model.init is None else 1
    weights = width * model.news_dim + model.news_dim * model.query_dim
    settings = f"model.news_dim {model.news_dim}, model.query_dim {model.query_dim}"
    if width > 1:
        layer = 4 * width**2 + 2 * width * backbone.intermediate_size
        weights += backbone.num_layers * layer + backbone.max_positions * width
        settings = (
            f"model.backbone num_layers {backbone.num_layers}, hidden_size {width}, "
            f"intermediate_size {backbone.intermediate_size}, max_positions "
            f"{backbone.max_positions}, {settings}"
        )
    _check_fits(4 * weights, memory, "the model", settings)
    texts = 1 + data.num_negatives
    settings = f"run.micro_batch {config.run.micro_batch}, data.num_negatives {data.num_negatives}"
    if config.task.startswith("finetune"):
        texts += config.clicks_read
        settings += f", data.history_length {data.history_length}"
    if data.pad_to_max:
        texts *= data.max_title_tokens
        settings += f", data.max_title_tokens {data.max_title_tokens}"
    _check_fits(8 * config.run.micro_batch * texts, memory, "one micro-batch", settings)


def _check_fits(needed: int, memory: int, what: str, settings: str) -> None:
    if needed > memory:
        raise ConfigError(
            f"{what} takes at least {needed / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f} GiB of memory: lower {settings}"
        )


def check_model(model: ModelConfig) -> None:
    """Refuse a model whose sizes do not fit each other.

    Raises:
        ConfigError: Naming the settings and their values.
    """
    backbone = model.backbone
    if backbone.name == "random" and backbone.hidden_size % backbone.num_heads:
        raise ConfigError(
            f"model.backbone.hidden_size {backbone.hidden_size} is not a multiple of "
            f"model.backbone.num_heads {backbone.num_heads}"
        )
    if backbone.layers is not None and list(backbone.layers) != sorted(set(backbone.layers)):
        raise ConfigError(
            f"model.backbone.layers {backbone.layers}: expected distinct layers, lowest first"
        )
    if model.init is None and backbone.name == "random":
        check_layers(backbone, backbone.num_layers)
    if model.user_encoder == "nrms" and model.news_dim % model.user_heads:
        raise ConfigError(
            f"model.news_dim {model.news_dim} is not a multiple of model.user_heads "
            f"{model.user_heads}, which the NRMS user encoder needs"
        )


def _at_least(config: TrainConfig) -> dict[str, tuple[float | None, float]]:
    data, run, loss, optimizer = config.data, config.run, config.loss, config.optimizer
    model, backbone, validation = config.model, config.model.backbone, config.validation
    return {
        "data.max_title_tokens": (data.max_title_tokens, 3),
        "data.max_abstract_tokens": (data.max_abstract_tokens, 3),
        "data.max_body_tokens": (data.max_body_tokens, 3),
        "data.max_category_tokens": (data.max_category_tokens, 3),
        "data.num_negatives": (data.num_negatives, 1),
        "data.history_length": (data.history_length, 1),
        "data.user_block": (data.user_block, 1),
        "data.window_shards": (data.window_shards, 1),
        "data.workers": (data.workers, 0),
        "data.batch_tokens": (data.batch_tokens, 0),
        "data.fetch_ahead": (data.fetch_ahead, 0),
        "data.fetch_attempts": (data.fetch_attempts, 1),
        "model.backbone.num_layers": (backbone.num_layers, 1),
        "model.backbone.hidden_size": (backbone.hidden_size, 1),
        "model.backbone.num_heads": (backbone.num_heads, 1),
        "model.backbone.intermediate_size": (backbone.intermediate_size, 1),
        "model.backbone.max_positions": (backbone.max_positions, 1),
        "model.query_dim": (model.query_dim, 1),
        "model.news_dim": (model.news_dim, 1),
        "model.user_heads": (model.user_heads, 1),
        "model.user_last_k": (model.user_last_k, 1),
        "model.trainable_layers": (model.trainable_layers, 0),
        "run.global_batch": (run.global_batch, 1),
        "run.micro_batch": (run.micro_batch, 1),
        "run.max_steps": (run.max_steps, 1),
        "run.checkpoint_every": (run.checkpoint_every, 1),
        "run.keep_checkpoints": (run.keep_checkpoints, 1),
        "run.keep_every": (run.keep_every, 1),
        "run.not_finite_budget": (run.not_finite_budget, 0),
        "run.log_every": (run.log_every, 1),
        "run.seed": (run.seed, 0),
        "run.copies.every": (run.copies.every, 1),
        "run.copies.count": (run.copies.count, 1),
        "optimizer.warmup_steps": (optimizer.warmup_steps, 0),
        "optimizer.weight_decay": (optimizer.weight_decay, 0),
        "loss.target": (loss.target, 0),
        "loss.distill": (loss.distill, 0),
        "loss.embedding": (loss.embedding, 0),
        "validation.every": (validation.every, 1),
        "validation.max_impressions": (validation.max_impressions, 1),
        "validation.patience": (validation.patience, 1),
        "validation.min_delta": (validation.min_delta, 0),
    }


def _above_zero(config: TrainConfig) -> dict[str, float | None]:
    run, optimizer = config.run, config.optimizer
    return {
        "run.epochs": run.epochs,
        "run.hang_timeout_s": run.hang_timeout_s,
        "teachers.follow_timeout_s": config.teachers.follow_timeout_s,
        "run.peak_tflops": run.peak_tflops,
        "data.cache_gib": config.data.cache_gib,
        "loss.temperature": config.loss.temperature,
        "optimizer.lr": optimizer.lr,
        "optimizer.backbone_lr": optimizer.backbone_lr,
        "optimizer.eps": optimizer.eps,
        "optimizer.max_grad_norm": optimizer.max_grad_norm,
    }


def _below_one(config: TrainConfig) -> dict[str, float | None]:
    backbone, (first, second) = config.model.backbone, config.optimizer.betas
    return {
        "model.backbone.hidden_dropout": backbone.hidden_dropout,
        "model.backbone.attention_dropout": backbone.attention_dropout,
        "optimizer.betas, the first,": first,
        "optimizer.betas, the second,": second,
    }


def check_layers(backbone: BackboneConfig, total: int) -> None:
    """Refuse to keep layers that a backbone does not have.

    Args:
        backbone: Of a run that starts from it, and not from an export.
        total: How many layers the backbone has.

    Raises:
        ConfigError: It has fewer.
    """
    if backbone.layers and not 0 <= backbone.layers[0] <= backbone.layers[-1] < total:
        raise ConfigError(
            f"model.backbone.layers is {list(backbone.layers)}, but the backbone {backbone.name} "
            f"has {total} layers; expected numbers from 0 to {total - 1}"
        )
