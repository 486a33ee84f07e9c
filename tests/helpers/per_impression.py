"""Evaluations with results by impression, written by hand for tests of reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from trainer.evaluate.metrics import METRIC_NAMES


def write_evaluation(
    path: Path, record: dict[str, Any], users: np.ndarray, auc: np.ndarray, **given: Any
) -> str:
    """Write a record and its file of single impressions, whose other metrics follow the AUC.

    Args:
        path: The record's.
        record: As ``tnr evaluate`` writes it; metrics and the file's name are filled in.
        users: int[n].
        auc: float[n].
        given: ``rows`` other than 0, 1, 2 ..., or ``clicks``, the fingerprint in the file.

    Returns:
        The path of the record, as a word of a command.
    """
    values = {name: np.asarray(auc, np.float64) / (k + 1) for k, name in enumerate(METRIC_NAMES)}
    rows = np.asarray(given.get("rows", np.arange(len(users))), np.int64)
    named = path.with_suffix(".impressions.safetensors")
    save_file(
        {"row": rows, "user": np.asarray(users, np.int32), **values},
        named,
        metadata={
            "format": "1",
            "clicks": given.get("clicks", record["data"]["impressions_fingerprint"]),
        },
    )
    metrics = {name: float(value.mean()) for name, value in values.items()}
    filled = record | {"metrics": metrics, "impressions_file": named.name}
    path.write_text(json.dumps(filled))
    return str(path)
