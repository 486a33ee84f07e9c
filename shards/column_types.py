"""Which tensors the cells of a teacher's column hold, by what the column says it was made from."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shards.cell_tensors import VALUES

Types = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Name of a tensor to its type and the shape of one row, or of one value of a ragged one."""

_VECTORS = {
    "teacher-text": ("title", "body"),
    "teacher-news": ("news",),
    "teacher-clicks": ("user" + VALUES,),
}
"""Tensors that hold vectors, by the name of the column."""
_DTYPES = ("float16", "float32", "int8")


def wrong_tensor(name: str, made_from: Mapping[str, Any], found: Types) -> str | None:
    """Say which tensor of a teacher's column is missing, or not as wide or stored as it says.

    Args:
        name: Of the column.
        made_from: What it was made from.
        found: The tensors of its cells.

    Returns:
        The problem; None where there is none, and for columns that do not say.
    """
    settings, stored = made_from.get("model_settings"), made_from.get("dtype")
    width = settings.get("news_dim") if isinstance(settings, dict) else None
    if not isinstance(width, int) or stored not in _DTYPES:
        return None
    for tensor in _VECTORS.get(name, ()):
        if tensor not in found:
            return f"there is no {tensor}"
        dtype, shape = found[tensor]
        if (dtype.name, shape) != (stored, (width,)):
            return f"{tensor} is {dtype}{list(shape)}, expected {stored}[{width}]"
    return None
