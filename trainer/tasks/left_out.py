"""Which samples of a run's data never come, and what is said about them. No torch."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class LeftOut:
    """Samples that are left out of a run.

    Attributes:
        units: Their numbers, int64[u] ascending.
        notes: What is said when the run starts: how many, and why.
    """

    units: np.ndarray
    notes: list[str] = field(default_factory=list)


def damaged(units: np.ndarray) -> LeftOut:
    """Samples that are left out because they, or articles that they name, could not be
    tokenized."""
    said = []
    if len(units):
        said.append(
            f"{len(units):,} samples are left out: they, or articles they name, were damaged when "
            "the tokens were made; skipped.jsonl in the token column's folder names them"
        )
    return LeftOut(np.asarray(units, dtype=np.int64), said)
