"""Values that the loader makes and a model is given: tensors, nested and typed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Batch:
    """Base of frozen dataclasses whose fields are tensors, further batches, tuples of these, or
    None.

    DDP and ZeRO-3 hand such a value on to the task's forward as it is; the modules inside are given
    its tensors.
    """

    def to(self, device: torch.device) -> Self:
        """The same on a device; a copy from pinned memory goes on in the background."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same in memory that a GPU can copy from by itself."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        parts = {field.name: _mapped(getattr(self, field.name), change) for field in fields}
        return dataclasses.replace(self, **parts)  # type: ignore[type-var]


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the same memory; over a copy where the array may not be written to."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    return value.map(change) if isinstance(value, Batch) else change(value)
