"""The plan of one run: every formula of this package on one configuration."""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.cache import CacheSettings
from shards.remote import is_url
from trainer.config.clicks import ClickConfig
from trainer.config.distill import DistillConfig, TeachersConfig
from trainer.config.schema import TrainConfig
from trainer.engine.deepspeed_file import deepspeed_file_path
from trainer.errors import ConfigError
from trainer.plan.activations import Settings, activation_bytes
from trainer.plan.advice import GIB, Advice, advise
from trainer.plan.batches import BatchPlan, StepPlan, plan_batches, plan_steps
from trainer.plan.compute import MicroWork, Work, longest_work, training_flops
from trainer.plan.data import Counts, counts_of, open_if_there
from trainer.plan.disk import DiskItem, rooms, run_items, teacher_columns, token_column
from trainer.plan.frozen import frozen_column
from trainer.plan.memory import RankMemory, checkpoint_bytes, rank_memory, way_of
from trainer.plan.sizes import BackboneSize, TaskSize, bert_size, task_size
from trainer.recipes.init import news_dim_of
from trainer.tasks.registry import task_of
from trainer.tasks.sources import Sources
from trainer.teacher_server.storage import value_bytes

DDP = "ddp"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a plan besides the run."""

    nodes: int = 1
    processes: int = 1
    gpu_gib: float | None = None
    """Memory of a GPU in GiB; None gives no advice."""
    reserve_gib: float = 2.0
    """GiB reserved for CUDA, NCCL and fragmentation."""
    device: str = "gpu"
    tflops: float | None = None
    """Peak of one device in TFLOP/s; None gives no time."""
    utilisation: float = 0.4
    """Share of the peak that the run reaches."""
    counts: Counts | None = None
    """Sizes of data that do not exist yet."""
    vocab_size: int = 30522
    """Vocabulary of a ``random`` backbone without data."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Results of a plan; sizes are in bytes, work is in FLOPs."""

    name: str
    task: str
    batches: BatchPlan
    steps: StepPlan | None
    """Steps; None if neither data nor their sizes are known."""
    size: TaskSize
    micro: MicroWork
    flops_a_step: float
    seconds: float | None
    """Seconds of the whole run, if a peak is given."""
    memory: dict[str, RankMemory]
    """Memory by DeepSpeed file."""
    chosen: str
    """Name of the run's own way among them."""
    activations: int
    activations_checkpointed: int
    is_checkpointed: bool
    checkpoint: int
    advice: Advice | None
    disk: list[DiskItem]
    notes: list[str]

    @property
    def peak(self) -> int:
        """Peak bytes on one device in the run's own way."""
        kept = self.activations_checkpointed if self.is_checkpointed else self.activations
        return self.memory[self.chosen].peak(kept)


def make_plan(config: TrainConfig, options: Options, *, name: str, has_data: bool) -> Plan:
    """Plan one run; nothing is allocated or written.

    Args:
        config: The run.
        options: Options of the plan.
        name: Name of the plan.
        has_data: Whether ``data.articles`` names a set; without one, only what needs no data is
            planned.

    Raises:
        TinyNewsRecError: Batches do not divide, or data or the model are missing.
    """
    notes: list[str] = []
    batches = plan_batches(config, options.nodes, options.processes)
    sources = open_if_there(config, options.counts) if has_data else None
    counts = counts_of(config, sources, options.counts)
    steps = None if counts is None else plan_steps(config, counts.units(config))
    size = _size(config, sources, options, notes)
    micro = _micro_work(config, sources)
    moments = 3 if config.optimizer.amsgrad else 2
    memory = _memory(config, size, batches.ranks, moments)
    flops = training_flops(
        size,
        micro.mean.times(batches.accumulation * batches.ranks),
        is_checkpointed=config.run.activation_checkpointing,
        from_states=isinstance(config, ClickConfig) and config.model.frozen_states != "off",
    )
    kept = functools.partial(_kept, config, size, micro.largest, options.device)
    advice = None
    if options.gpu_gib is not None:
        advice = advise(
            memory,
            kept,
            [m for m in batches.micro_batches if m <= config.run.micro_batch],
            room=int((options.gpu_gib - options.reserve_gib) * GIB),
            is_checkpointed=config.run.activation_checkpointing,
        )
    return Plan(
        name=name,
        task=config.task,
        batches=batches,
        steps=steps,
        size=size,
        micro=micro,
        flops_a_step=flops,
        seconds=_seconds(options, flops, steps, batches.ranks),
        memory=memory,
        chosen=_chosen(config),
        activations=kept(config.run.micro_batch, False),
        activations_checkpointed=kept(config.run.micro_batch, True),
        is_checkpointed=config.run.activation_checkpointing,
        checkpoint=checkpoint_bytes(size, moments=moments),
        advice=advice,
        disk=_disk(config, size, steps, counts, sources, moments=moments),
        notes=notes,
    )


def crowded(items: list[DiskItem]) -> list[str]:
    """Return a warning for each file system that is too small for its items."""
    return [
        f"{room.where}: {room.needed / 1e9:.1f} GB needed, {room.free / 1e9:.1f} GB free"
        for room in rooms(items)
        if not room.fits
    ]


def deepspeed_files(also: str | None) -> dict[str, dict[str, Any]]:
    """Return the DeepSpeed files in ds_configs, and the run's own, by name."""
    folder = deepspeed_file_path("zero0").parent
    paths = sorted(folder.glob("*.json"))
    if also is not None:
        paths.append(deepspeed_file_path(also))
    found = {}
    for path in paths:
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"DeepSpeed file {path} cannot be read as JSON: {error}") from error
    return found


def _memory(config: TrainConfig, size: TaskSize, ranks: int, moments: int) -> dict[str, RankMemory]:
    """Compute each way that works for this number of ranks, including the run's own."""
    files: dict[str, dict[str, Any] | None] = {DDP: None, **deepspeed_files(config.run.deepspeed)}
    ways = [way_of(name, content) for name, content in files.items()]
    return {
        way.name: rank_memory(size, way, ranks, moments=moments)
        for way in ways
        # ZeRO++ shares its second copy among equal groups of ranks.
        if ranks % way.hpz == 0 or way.name == _chosen(config)
    }


def _kept(
    config: TrainConfig,
    size: TaskSize,
    work: Work,
    device: str,
    micro_batch: int,
    is_checkpointed: bool,
) -> int:
    """Return activations of a micro-batch other than the configured one."""
    part = work.times(micro_batch / config.run.micro_batch)
    settings = _settings(config, device, is_checkpointed)
    return activation_bytes(size, round(part.slots), round(part.slots_squared), settings)


def _seconds(options: Options, flops: float, steps: StepPlan | None, ranks: int) -> float | None:
    if options.tflops is None or steps is None:
        return None
    return flops * steps.steps / (options.tflops * 1e12 * options.utilisation * ranks)


def _chosen(config: TrainConfig) -> str:
    return DDP if config.run.deepspeed is None else Path(config.run.deepspeed).stem


def _size(
    config: TrainConfig, sources: Sources | None, options: Options, notes: list[str]
) -> TaskSize:
    dims: list[int] = []
    if isinstance(config, DistillConfig) and config.reads_vectors:
        width = config.model.news_dim
        dims = [_teacher_width(name, width) for name in config.teachers.models]
    return task_size(config, _backbone(config, sources, options, notes), dims)


def _backbone(
    config: TrainConfig, sources: Sources | None, options: Options, notes: list[str]
) -> BackboneSize:
    model = config.model
    if model.init is not None and not (Path(model.init) / "config.json").is_file():
        notes.append(f"model.init {model.init} does not exist yet: sized as model.backbone")
        model = dataclasses.replace(model, init=None)
    if model.init is None and model.backbone.name == "random":
        vocab_size = sources.tokens.vocab_size if sources else options.vocab_size
        return bert_size(model.backbone, vocab_size)
    from trainer.plan.meta import backbone_size

    return backbone_size(model)


def _teacher_width(folder: str, otherwise: int) -> int:
    if not (Path(folder) / "config.json").is_file():
        return otherwise
    return news_dim_of(Path(folder)) or otherwise


def _micro_work(config: TrainConfig, sources: Sources | None) -> MicroWork:
    if sources is None:
        return longest_work(config)
    from trainer.plan.sample import sampled_work
    from trainer.tasks.build import open_data

    return sampled_work(config, open_data(config, sources))


def _settings(config: TrainConfig, device: str, is_checkpointed: bool) -> Settings:
    backbone = config.model.backbone
    return Settings(
        precision=config.run.precision,
        has_dropout=backbone.hidden_dropout != 0.0,
        attention_dropout=backbone.attention_dropout != 0.0,
        is_checkpointed=is_checkpointed,
        device=device,
    )


def _disk(
    config: TrainConfig,
    size: TaskSize,
    steps: StepPlan | None,
    counts: Counts | None,
    sources: Sources | None,
    *,
    moments: int,
) -> list[DiskItem]:
    """List everything that the run and its columns write."""
    items = run_items(config, size, steps, moments=moments)
    data = config.data
    where = "." if is_url(data.articles) else data.articles
    if any(is_url(name) for name in config.locations):
        folder = str(CacheSettings(data.cache_dir).path)
        what = "cache of sets at a URL, at most (data.cache_gib)"
        items.append(DiskItem(what=what, bytes=int(data.cache_gib * GIB), where=folder))
    if counts is None:
        return items
    column = frozen_column(config, size.backbone.width, sources, counts)
    items += [] if column is None else [column]
    if sources is None:
        stored = {field: limit for parts in config.texts for field, limit in parts}
        held = token_column(counts.articles, sum(stored.values()), len(stored))
        items.append(DiskItem(what="token column, at most", bytes=held, where=where))
    task, dtype = task_of(config), TeachersConfig.dtype
    teachers = len(steps.copies) if steps else 0
    if isinstance(config, DistillConfig):
        teachers, dtype = len(config.teachers.models), config.teachers.dtype
    if teachers and task.stage is not None:
        held = teacher_columns(
            task.stage,
            teachers=teachers,
            articles=counts.articles,
            impressions=counts.impressions,
            candidates=counts.candidates,
            width=size.news_dim,
            dtype=dtype,
        )
        what = f"columns of {teachers} teachers, stage {'I' * task.stage} ({dtype})"
        items.append(DiskItem(what=what, bytes=held, where=where))
    drawn = task.drawn(config, counts.articles, counts.units(config))
    if drawn is not None:
        what, values = drawn
        held = teachers * values * value_bytes(dtype)
        items.append(DiskItem(what=what, bytes=held, where=where))
    return items
