"""Samples that a run leaves out, and the lines about them.

This module does not import torch.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class LeftOut:
    """Samples that are left out of a run.

    Attributes:
        units: Numbers of the samples, int64[u] ascending.
        notes: Lines to print when the run starts: how many samples, and why.
    """

    units: np.ndarray
    notes: list[str] = field(default_factory=list)


def damaged(units: np.ndarray) -> LeftOut:
    """Return the samples left out because they or their articles could not be tokenized."""
    said = []
    if len(units):
        said.append(
            f"{len(units):,} samples are left out: they, or articles they name, were damaged when "
            "the tokens were made; skipped.jsonl in the token column's folder names them"
        )
    return LeftOut(np.asarray(units, dtype=np.int64), said)
