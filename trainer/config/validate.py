"""Checks of a configuration before anything is allocated.

Each section is checked by itself, then the whole run. A task's own settings are checked by the
task's configuration (``TrainConfig.check``).
"""

import dataclasses
import os
from collections.abc import Collection
from operator import attrgetter

from shards.location import is_elsewhere, refuse_keys, shown
from trainer.config.ranges import check_ranges
from trainer.config.schema import (
    BackboneConfig,
    LanguageModelConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from trainer.errors import ConfigError, UsageError

_SIZES = ("num_layers", "hidden_size", "num_heads", "intermediate_size", "max_positions")
"""Settings of ``model.backbone`` that only a ``random`` backbone has; other backbones bring their
own sizes."""


def validate(config: TrainConfig, given: Collection[str] = ()) -> None:
    """Refuse a configuration that cannot run; name the setting, its value and the remedy.

    Args:
        config: The run.
        given: Settings given by name on the command line. These must have an effect even at their
            defaults; a recipe may list settings that have no effect.

    Raises:
        ConfigError: A setting is wrong; names the first one.
    """
    _check_locations(config)
    check_ranges(config)
    _check_profiled(config.run)
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
    """Return the number of micro-batches per rank in an optimizer step.

    Raises:
        ConfigError: The global batch is not divisible; the message shows the arithmetic.
    """
    run = config.run
    accumulation = _accumulation(config, world_size)
    if config.takes_whole_batch and accumulation > 1:
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
    """Refuse sizes for a backbone that has its own: whoever sets them expects an effect."""
    for name in _SIZES:
        value, default = getattr(backbone, name), getattr(BackboneConfig(), name)
        if value != default or f"model.backbone.{name}" in given:
            keep = ", or keep some of its layers: model.backbone.layers"
            raise ConfigError(
                f"model.backbone.{name} is {value}, but only random backbones take it, and "
                f"model.backbone.name is {backbone.name}, which has its own sizes: leave it "
                f"out{keep if name == 'num_layers' else ''}"
            )


def _check_run(config: TrainConfig) -> None:
    if not config.data.articles:
        raise ConfigError("data.articles is not set: name an article shard set")
    if not config.run.dir:
        raise ConfigError("run.dir is not set: name the folder of the run")
    config.check()
    if config.model.init is None and config.model.backbone.name == "random":
        check_positions(config, config.model.backbone.max_positions)
    if config.run.copies.rule == "list" and not config.run.copies.steps:
        raise ConfigError("run.copies.rule is list, but run.copies.steps is empty")
    _check_kept(config.run)
    _accumulation(config, world_size=1)


def _check_profiled(run: RunConfig) -> None:
    steps = run.profile_steps
    if list(steps) != sorted({step for step in steps if step > 0}):
        raise ConfigError(
            f"run.profile_steps is {steps}; expected distinct steps from 1, lowest first"
        )


def _check_kept(run: RunConfig) -> None:
    if run.keep_every is not None and run.keep_every % run.checkpoint_every:
        raise ConfigError(
            f"run.keep_every {run.keep_every} is not a multiple of run.checkpoint_every "
            f"{run.checkpoint_every}, so its steps have no checkpoints to keep: take "
            f"{-(-run.keep_every // run.checkpoint_every) * run.checkpoint_every}"
        )


def check_positions(config: TrainConfig, positions: int | None, num_first: int = 1) -> None:
    """Refuse texts that are too long for a backbone before the run starts.

    Args:
        config: The run.
        positions: Longest text in tokens that the backbone reads; None means no limit.
        num_first: Special tokens at the start of a text, which joined fields share.

    Raises:
        ConfigError: Texts can be too long; names the settings and their sum.
    """
    for parts in config.texts:
        tokens = sum(limit for _, limit in parts) - num_first * (len(parts) - 1)
        if positions is not None and tokens > positions:
            settings = " + ".join(f"data.max_{field}_tokens {limit}" for field, limit in parts)
            verb = "makes" if len(parts) == 1 else "make"
            raise ConfigError(
                f"{settings} {verb} texts of up to {tokens} tokens, but the backbone reads at "
                f"most {positions}: lower them, or choose a backbone with more positions"
            )


def check_memory(config: TrainConfig, memory: int | None = None) -> None:
    """Refuse sizes that cannot fit into this machine's memory even when it is empty.

    Args:
        config: The run.
        memory: Memory of this machine in bytes; None asks the operating system.

    Raises:
        ConfigError: The weights of one rank, or the rows of one micro-batch, need more memory;
            names the settings and the sum.
    """
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    model, backbone, data = config.model, config.model.backbone, config.data
    width = backbone.hidden_size if backbone.name == "random" and model.init is None else 1
    weights, said = 0, []
    if width > 1:
        layer = 4 * width**2 + 2 * width * backbone.intermediate_size
        weights += backbone.num_layers * layer + backbone.max_positions * width
        said.append(
            f"model.backbone num_layers {backbone.num_layers}, hidden_size {width}, "
            f"intermediate_size {backbone.intermediate_size}, max_positions "
            f"{backbone.max_positions}"
        )
    if isinstance(model, ModelConfig):
        weights += width * model.news_dim + model.news_dim * model.query_dim
        said.append(f"model.news_dim {model.news_dim}, model.query_dim {model.query_dim}")
    _check_fits(4 * weights, memory, "the model", ", ".join(said))
    named = ["run.micro_batch", *config.batch_settings]
    counts = config.most_texts(config.run.micro_batch)
    if data.pad_to_max:
        named.append("data.max_title_tokens")
    rows = sum(texts * (tokens if data.pad_to_max else 1) for texts, tokens in counts)
    settings = ", ".join(f"{name} {attrgetter(name)(config)}" for name in named)
    _check_fits(8 * rows, memory, "one micro-batch", settings)


def _check_fits(needed: int, memory: int, what: str, settings: str) -> None:
    if needed > memory:
        raise ConfigError(
            f"{what} takes at least {needed / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f} GiB of memory: lower {settings}"
        )


def check_model(model: LanguageModelConfig) -> None:
    """Refuse a model whose sizes contradict each other.

    Raises:
        ConfigError: Sizes contradict each other; names the settings and their values.
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


def check_layers(backbone: BackboneConfig, total: int) -> None:
    """Refuse to keep layers that a backbone does not have.

    Args:
        backbone: Backbone of a run that does not start from an export.
        total: How many layers the backbone has.

    Raises:
        ConfigError: The backbone has fewer layers.
    """
    if backbone.layers and not 0 <= backbone.layers[0] <= backbone.layers[-1] < total:
        raise ConfigError(
            f"model.backbone.layers is {list(backbone.layers)}, but the backbone {backbone.name} "
            f"has {total} layers; expected numbers from 0 to {total - 1}"
        )
