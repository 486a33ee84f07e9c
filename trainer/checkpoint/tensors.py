"""Weights and Adam state, whole and by parameter name: the same on any ranks and ZeRO stage.

``model.safetensors`` holds every parameter of the task (frozen ones too) and its persistent buffers
under their names; ``optimizer.safetensors`` holds ``<parameter>/exp_avg`` and its fellows for the
trainable ones.
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
    """Collect the whole model and Adam state on the CPU of rank 0, one parameter at a time.

    Every rank calls this; only rank 0 keeps what it gets.

    Args:
        backend: The wrapped task.
        task: The task.
        moments: Names of Adam's tensors.
        is_main: Whether this is rank 0.
        to_own: Whether the tensors must stay as they are while training goes on; otherwise they may
            be the live ones, to be written before the next step.

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
        folder: Where to.
        model: Weights and buffers by name.
        optimizer: Adam's tensors by name.
        metadata: What both files say of themselves: :func:`trainer.checkpoint.binding.binding_of`.

    Returns:
        Their lines of the manifest.

    Raises:
        OSError: The disk refused.
    """
    return {
        name: write_safetensors(folder / name, tensors, metadata or {})
        for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer))
    }


def load_model(folder: Path, task: nn.Module) -> None:
    """Copy a checkpoint's weights into a task that is not yet wrapped.

    Raises:
        CheckpointError: Names or shapes differ; the first few are named.
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
    """Put a checkpoint's Adam state into a wrapped task that has one, one parameter at a time.

    Raises:
        CheckpointError: The file is not that of these trainable parameters.
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
    """Give a task that is wrapped, and has trained, the weights and buffers of a checkpoint.

    Frozen parameters are what they were. Called by all ranks.

    Raises:
        CheckpointError: The file is not that of this task.
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
    """Buffers that belong to the state dict, by name."""
    kept: Tensors = {}
    for prefix, module in task.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                kept[f"{prefix}.{name}" if prefix else name] = buffer
    return kept


def _owned(value: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU: the value may be a view of a flat buffer, or change while it is
    written."""
    return value.detach().to("cpu", copy=True).contiguous()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file of a checkpoint.

    Raises:
        CheckpointError: It is missing, is not a regular file, or is damaged.
    """
    try:
        with open_regular(path), safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError, DataError) as error:
        raise CheckpointError(f"{path} is missing, cut or damaged: {error}") from error


def _tensor(path: Path, stored: Any, name: str, shape: torch.Size) -> torch.Tensor:
    """One tensor, of the shape that it must have."""
    value: torch.Tensor = stored.get_tensor(name)
    if value.shape != shape:
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(value.shape)}, the model's is {tuple(shape)}; the "
            "checkpoint belongs to another model"
        )
    return value


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter that ZeRO-3 may have cut up."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _compare_names(path: Path, stored: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - stored), sorted(stored - expected)
    if missing or extra:
        raise CheckpointError(
            f"{path} belongs to another model: it lacks {missing[:4]} ({len(missing)}) and has "
            f"{extra[:4]} ({len(extra)}) besides"
        )
