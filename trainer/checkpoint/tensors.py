"""Weights and Adam state, whole and by parameter name: the same for any ranks and ZeRO stage.

``model.safetensors`` holds every parameter of the task (frozen ones too) and its persistent buffers
by name; ``optimizer.safetensors`` holds ``<parameter>/exp_avg`` and the other moments of the
trainable parameters.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shards.errors import DataError
from shards.files import open_regular
from trainer.checkpoint.hashed import FileEntry, write_safetensors
from trainer.errors import CheckpointError

if TYPE_CHECKING:
    from trainer.engine.backends import Backend

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"

Tensors = dict[str, torch.Tensor]


def gather_tensors(
    backend: "Backend",
    task: nn.Module,
    moments: tuple[str, ...],
    *,
    is_main: bool,
    to_own: bool = True,
) -> tuple[Tensors, Tensors]:
    """Collect the whole model and Adam state on rank 0's CPU, parameter by parameter.

    Every rank calls this; only rank 0 keeps the tensors.

    Args:
        backend: The wrapped task.
        task: The task.
        moments: Names of Adam's tensors.
        is_main: Whether this is rank 0.
        to_own: Whether the tensors must stay unchanged while training continues; otherwise they may
            be the live tensors, to be written before the next step.

    Returns:
        Model and optimizer tensors by name; both empty on other ranks.
    """
    model: Tensors = {}
    optimizer: Tensors = {}

    def keep(into: Tensors, name: str, value: torch.Tensor) -> None:
        if is_main:
            into[name] = _owned(value) if to_own else value.detach().cpu().contiguous()

    for name, parameter in backend.parameters().items():
        keep(model, name, backend.full_parameter(parameter))
        if parameter.requires_grad:
            for moment in moments:
                keep(optimizer, f"{name}/{moment}", backend.full_moment(parameter, moment))
    for name, buffer in persistent_buffers(task).items():
        keep(model, name, buffer)
    return model, optimizer


def write_tensors(
    folder: Path, model: Tensors, optimizer: Tensors, metadata: Mapping[str, str] | None = None
) -> dict[str, FileEntry]:
    """Write the two safetensors files of a checkpoint.

    Args:
        folder: Folder to write to.
        model: Weights and buffers by name.
        optimizer: Adam's tensors by name.
        metadata: Metadata of both files: :func:`trainer.checkpoint.binding.binding_of`.

    Returns:
        Manifest entries of the two files.

    Raises:
        OSError: The disk refused the write.
    """
    return {
        name: write_safetensors(folder / name, tensors, metadata or {})
        for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer))
    }


def load_model(folder: Path, task: nn.Module) -> None:
    """Copy a checkpoint's weights into a task that is not yet wrapped.

    Raises:
        CheckpointError: Names or shapes differ; names the first few.
    """
    targets: dict[str, torch.Tensor] = {
        **{name: p.data for name, p in task.named_parameters()},
        **persistent_buffers(task),
    }
    with _opened(folder / MODEL) as stored:
        _compare_names(folder / MODEL, set(stored.keys()), set(targets))
        for name, target in targets.items():
            target.copy_(_tensor(folder / MODEL, stored, name, target.shape))


def load_optimizer(folder: Path, backend: "Backend", moments: tuple[str, ...]) -> None:
    """Load a checkpoint's Adam state into a wrapped task, parameter by parameter.

    Raises:
        CheckpointError: The file does not match these trainable parameters.
    """
    trainable = {n: p for n, p in backend.parameters().items() if p.requires_grad}
    with _opened(folder / OPTIMIZER) as stored:
        expected = {f"{name}/{moment}" for name in trainable for moment in moments}
        _compare_names(folder / OPTIMIZER, set(stored.keys()), expected)
        for name, parameter in trainable.items():
            for moment in moments:
                key = f"{name}/{moment}"
                value = _tensor(folder / OPTIMIZER, stored, key, _whole_shape(parameter))
                backend.set_moment(parameter, moment, value)


def restore_model(folder: Path, backend: "Backend", task: nn.Module) -> None:
    """Load a checkpoint's weights and buffers into a wrapped task that has already trained.

    Frozen parameters have not changed. Called by all ranks.

    Raises:
        CheckpointError: The file does not match this task.
    """
    trainable = {n: p for n, p in backend.parameters().items() if p.requires_grad}
    buffers = persistent_buffers(task)
    with _opened(folder / MODEL) as stored:
        wanted = set(trainable) | set(buffers)
        _compare_names(folder / MODEL, set(stored.keys()) & wanted, wanted)
        for name, parameter in trainable.items():
            value = _tensor(folder / MODEL, stored, name, _whole_shape(parameter))
            backend.set_parameter(parameter, value)
        for name, buffer in buffers.items():
            buffer.copy_(_tensor(folder / MODEL, stored, name, buffer.shape))


def persistent_buffers(task: nn.Module) -> Tensors:
    """Return the buffers in the state dict, by name."""
    kept: Tensors = {}
    for prefix, module in task.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                kept[f"{prefix}.{name}" if prefix else name] = buffer
    return kept


def _owned(value: torch.Tensor) -> torch.Tensor:
    """Copy a value, which may be a view or change later, to the CPU."""
    return value.detach().to("cpu", copy=True).contiguous()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file of a checkpoint.

    Raises:
        CheckpointError: The file is missing, not regular, or damaged.
    """
    try:
        with open_regular(path), safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError, DataError) as error:
        raise CheckpointError(f"{path} is missing, truncated or damaged: {error}") from error


def _tensor(path: Path, stored: Any, name: str, shape: torch.Size) -> torch.Tensor:
    """Return one tensor after a check of its shape."""
    value: torch.Tensor = stored.get_tensor(name)
    if value.shape != shape:
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(value.shape)}, but the model needs {tuple(shape)}; "
            "the checkpoint belongs to another model"
        )
    return value


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the whole shape of a parameter that ZeRO-3 may have sharded."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _compare_names(path: Path, stored: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - stored), sorted(stored - expected)
    if missing or extra:
        raise CheckpointError(
            f"{path} belongs to another model: it lacks {missing[:4]} ({len(missing)}) and has "
            f"{extra[:4]} ({len(extra)}) in addition"
        )
