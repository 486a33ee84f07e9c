"""DeepSpeed files: found by name or path, checked against the run's settings, completed.

A file holds only what DeepSpeed alone knows (ZeRO stage, buckets, communication). Batch sizes,
optimizer, learning rate, clipping and precision are the run's settings. A file that sets one of
them too is refused, because one of the two values would have no effect.
"""

import difflib
import importlib.resources
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from shards.errors import DataError
from shards.files import read_json
from trainer.config.text import shown
from trainer.engine.extensions import find_compiler, find_ninja
from trainer.errors import ConfigError

SET_BY_THE_RUN = {
    "train_batch_size": "run.global_batch",
    "train_micro_batch_size_per_gpu": "run.micro_batch",
    "gradient_accumulation_steps": "run.global_batch and run.micro_batch",
    "optimizer": "the section optimizer",
    "scheduler": "optimizer.schedule",
    "gradient_clipping": "optimizer.max_grad_norm",
    "bf16": "run.precision",
    "bfloat16": "run.precision",
    "fp16": "run.precision",
    "amp": "run.precision",
    "torch_autocast": "run.precision",
    "data_types": "run.precision",
    "communication_data_type": "run.precision",
    "tensorboard": "run.dir (the run writes its own TensorBoard files)",
    "wandb": "run.dir (the run writes its own metrics)",
    "csv_monitor": "run.dir (the run writes its own metrics)",
}
"""DeepSpeed keys that a file must not set, each with the run's setting for it."""

_SECTIONS = frozenset(SET_BY_THE_RUN) | {
    "activation_checkpointing", "aio", "autotuning", "checkpoint", "comet", "comms_logger",
    "compile", "compression_training", "curriculum_learning", "data_efficiency",
    "dataloader_drop_last", "disable_allgather", "dump_state", "eigenvalue", "elasticity",
    "flops_profiler", "gradient_predivide_factor", "graph_harvesting", "hybrid_engine",
    "memory_breakdown", "nebula", "pipeline", "prescale_gradients", "progressive_layer_drop",
    "seq_parallel_communication_data_type", "sequence_parallel_size", "sparse_attention",
    "sparse_gradients", "steps_per_print", "tensor_parallel", "timers",
    "use_data_before_expert_parallelism", "wall_clock_breakdown", "weight_quantization",
    "zenflow", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "zero_optimization",
}  # fmt: skip
"""Top-level keys that DeepSpeed 0.19 reads; it silently ignores all others."""

OFFLOADS = {"offload_optimizer": (1, 2, 3), "offload_param": (3,)}
"""What can be kept in host memory, each with the ZeRO stages that support it."""

QUANTISED = ("zero_quantized_weights", "zero_quantized_gradients")
"""What ZeRO++ sends in 8 or 4 bits."""


class _Offload(msgspec.Struct):
    """Fields that are read from an offload section."""

    device: str = "none"


class _Zero(msgspec.Struct):
    """Fields that are read from ``zero_optimization``."""

    stage: int = 0
    offload_optimizer: _Offload | None = None
    offload_param: _Offload | None = None
    zero_hpz_partition_size: int = 1


def deepspeed_file_path(name: str) -> Path:
    """Find a DeepSpeed file by its path or by the name of one in ds_configs.

    Raises:
        ConfigError: The file does not exist; the message lists the names.
    """
    path = Path(name)
    if path.suffix == ".json":
        if not path.is_file():
            raise ConfigError(f"run.deepspeed is {name}, which is not a file")
        return path
    folder = Path(str(importlib.resources.files("ds_configs")))
    known = sorted(p.stem for p in folder.glob("*.json"))
    if name not in known:
        raise ConfigError(
            f"run.deepspeed is {name!r}; expected a path that ends in .json or one of "
            f"{', '.join(known)}"
        )
    return folder / f"{name}.json"


def read_deepspeed_file(name: str) -> dict[str, Any]:
    """Read and check a DeepSpeed file.

    Raises:
        ConfigError: The file is missing, is not a JSON object, sets something that the run sets
            (the message names both places), leaves a value ``auto``, or asks for an offload that
            its stage does not support.
    """
    path = deepspeed_file_path(name)
    try:
        content = read_json(path)
        json.loads(path.read_bytes(), object_pairs_hook=_each_key_once)
    except DataError as error:
        raise ConfigError(f"DeepSpeed file {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"DeepSpeed file {path}: expected an object, found {type(content).__name__}"
        )
    for key in content:
        if key not in _SECTIONS:
            near = difflib.get_close_matches(key, _SECTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            raise ConfigError(f"{path}: DeepSpeed does not know {shown(key)}; {hint}")
    for key, place in SET_BY_THE_RUN.items():
        section = content.get(key)
        if key in content and not (isinstance(section, dict) and section.get("enabled") is False):
            raise ConfigError(
                f"{key} is set in {path}, but the run sets it too, in {place}: remove it from the "
                "file"
            )
    _refuse_auto(content, path)
    zero = content.setdefault("zero_optimization", {"stage": 0})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3; found {zero!r}")
    try:
        msgspec.convert(zero, _Zero)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: zero_optimization: {error}") from error
    _check_offload(zero, path)
    return content


def check_by_deepspeed(name: str) -> None:
    """Let DeepSpeed itself read a file, before anything is compiled or built.

    Raises:
        ConfigError: DeepSpeed refuses a key or a value; the message names it.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed prints warnings
    from deepspeed import comm
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    content = complete_deepspeed_config(
        read_deepspeed_file(name),
        micro_batch=1,
        accumulation=1,
        world_size=comm.get_world_size() if comm.is_initialized() else 1,  # checked, too
        max_grad_norm=None,
    )
    try:
        DeepSpeedConfig(content)
    except (DeepSpeedConfigError, AssertionError, AttributeError, TypeError, ValueError) as error:
        said = " ".join(str(error).partition("For further information")[0].split())
        raise ConfigError(f"{deepspeed_file_path(name)}: DeepSpeed refuses it: {said}") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise DataError(f"the key {shown(twice)} is set twice")
    return dict(pairs)


def complete_deepspeed_config(
    content: dict[str, Any],
    *,
    micro_batch: int,
    accumulation: int,
    world_size: int,
    max_grad_norm: float | None,
) -> dict[str, Any]:
    """Add the run's settings to a checked file.

    DeepSpeed runs in fp32 in every run: bf16 and fp16 are autocast inside the task's forward pass,
    so that weights, gradients and optimizer are fp32 with and without DeepSpeed. The optimizer is
    the run's own, with offloading too. Stage 0 leaves whole gradients, which the run clips itself
    as it does without DeepSpeed.
    """
    clipping = 0.0 if stage_of(content) == 0 else max_grad_norm or 0.0
    return content | {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world_size,
        "gradient_clipping": clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def stage_of(content: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration."""
    return int(content["zero_optimization"].get("stage", 0))


def check_partition(content: dict[str, Any], *, world_size: int, has_gpu: bool) -> None:
    """Check that the ranks and devices of this run support the file's ZeRO++ settings.

    Raises:
        ConfigError: The number of ranks is not a multiple of the group size, or weights or
            gradients are quantised without a GPU.
    """
    zero = content["zero_optimization"]
    group = max(1, int(zero.get("zero_hpz_partition_size", 1)))
    if world_size % group:
        raise ConfigError(
            f"zero_optimization.zero_hpz_partition_size is {group}, which does not divide the "
            f"{world_size} ranks of this run: set it to the number of GPUs per node in your own "
            "file"
        )
    quantised = [key for key in QUANTISED if zero.get(key)]
    if quantised and not has_gpu:
        raise ConfigError(
            f"zero_optimization.{quantised[0]} needs GPUs, because DeepSpeed quantises in CUDA "
            "kernels: use zero3 here"
        )


def check_compiler() -> None:
    """Check that DeepSpeed can build its communication op, as its first start on CPUs does.

    Raises:
        ConfigError: ninja or a C++ compiler is missing; without them DeepSpeed would fail later
            with an obscure error.
    """
    missing = []
    if find_ninja() is None:
        missing.append("ninja (pip install ninja)")
    if find_compiler() is None:
        missing.append("a C++ compiler (g++)")
    if missing:
        raise ConfigError(
            f"run.deepspeed needs {' and '.join(missing)} to build DeepSpeed's communication for "
            "CPUs; install it, or leave run.deepspeed out to train with plain data parallelism"
        )


def check_compiler_of_layers() -> None:
    """Check that ``run.compile`` can build its code for CPUs.

    Raises:
        ConfigError: The machine does not have a C++ compiler.
    """
    if find_compiler() is None:
        raise ConfigError(
            "run.compile needs a C++ compiler (g++) on a machine without GPUs; install it, or "
            "leave run.compile out"
        )


def _check_offload(zero: dict[str, Any], path: Path) -> None:
    stage = zero.get("stage", 0)
    for part, stages in OFFLOADS.items():
        device = (zero.get(part) or {}).get("device", "none")
        if device == "none":
            continue
        if device != "cpu":
            raise ConfigError(
                f"{path}: zero_optimization.{part}.device is {device!r}; expected 'cpu' or 'none'"
            )
        if stage not in stages:
            raise ConfigError(
                f"{path}: zero_optimization.{part} does nothing at stage {stage}; it needs stage "
                f"{' or '.join(map(str, stages))}"
            )


def _refuse_auto(content: dict[str, Any], path: Path, prefix: str = "") -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            _refuse_auto(value, path, f"{prefix}{key}.")
        elif value == "auto":
            raise ConfigError(f"{path}: {prefix}{key} is 'auto'; give a value or remove it")
