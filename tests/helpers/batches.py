"""Batches taken apart, to be compared."""

import dataclasses
from typing import Any

import numpy as np

from trainer.batch import Batch


def flat(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """The tensors of a batch as arrays, by the names of the fields that lead there."""
    if value is None:
        return {}
    if isinstance(value, tuple):
        inner = list(enumerate(value))
    elif isinstance(value, Batch):
        inner = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        return {name: value.numpy()}
    found: dict[str, np.ndarray] = {}
    for key, part in inner:
        found |= flat(part, f"{name}.{key}".lstrip("."))
    return found
