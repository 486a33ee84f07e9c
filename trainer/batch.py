"""Batches from the loader to a model: nested, typed tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Batch:
    """Base of frozen dataclasses with fields of tensors, batches, tuples of these, or None.

    DDP and ZeRO-3 pass such a value unchanged to the task's forward; the modules inside receive its
    tensors.
    """

    def to(self, device: torch.device) -> Self:
        """Return a copy on a device; a copy from pinned memory continues in the background."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Return a copy in pinned memory, from which a GPU can copy directly."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with every tensor changed."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        parts = {field.name: _mapped(getattr(self, field.name), change) for field in fields}
        return dataclasses.replace(self, **parts)  # type: ignore[type-var]


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor over the array's memory, or a copy if read-only."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    return value.map(change) if isinstance(value, Batch) else change(value)
