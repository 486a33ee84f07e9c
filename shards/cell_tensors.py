"""The tensors of a cell by name, and where they lie, whether it is here or elsewhere."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies in a safetensors file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the file."""
    end: int


class HasTensors(Protocol):
    """A cell, here or elsewhere."""

    places: dict[str, TensorPlace]

    def array(self, name: str) -> np.ndarray:
        """One tensor, read-only."""
        ...


class CellTensors(Mapping[str, np.ndarray]):
    """The tensors of a cell by name; each is mapped when it is asked for."""

    __slots__ = ("_cell",)

    def __init__(self, cell: HasTensors) -> None:
        self._cell = cell

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor."""
        if name not in self._cell.places:
            raise KeyError(name)
        return self._cell.array(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is one of this name; nothing is mapped."""
        return name in self._cell.places

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._cell.places)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._cell.places)
