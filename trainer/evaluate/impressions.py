"""Metrics of single impressions, in a file next to an evaluation's record.

Confidence intervals and paired comparisons of two models are computed from this safetensors file.
It has one row for each impression that counts:

- ``row`` int64: the impression's row in its set;
- ``user`` int32: the user's number, by first appearance in the log;
- ``auc``, ``mrr``, ``ndcg5``, ``ndcg10`` float64.

Its metadata are ``format`` and ``clicks``, the fingerprint of the impression set.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from shards.files import atomic_file, sha256_file
from trainer.evaluate.metrics import METRIC_NAMES, Metrics

FORMAT = "1"
FILE_KEY = "impressions_file"
"""Entry of the record: name of the file in the record's own folder."""
HASH_KEY = "impressions_sha256"


def write_impressions(
    record: Path, metrics: Metrics, users: np.ndarray, clicks: str
) -> dict[str, str]:
    """Write the values of every impression that counts next to a record.

    Args:
        record: Path of the record; ``x.json`` gets ``x.impressions.safetensors``.
        metrics: Metrics of all impressions of the set, in its order.
        users: int32[n], the user of each impression.
        clicks: Fingerprint of the impression set.

    Returns:
        Entries of the record for the file: its name and its sha256.
    """
    from safetensors.numpy import save

    rows = np.flatnonzero(~np.isnan(metrics.auc_n))
    values = metrics.arrays()
    tensors: dict[str, np.ndarray] = {"row": rows, "user": users[rows].astype(np.int32)}
    tensors |= {name: values[f"{name}_n"][rows] for name in METRIC_NAMES}
    path = record.with_suffix(".impressions.safetensors")
    with atomic_file(path) as file:
        file.write(_sorted_metadata(save(tensors, {"format": FORMAT, "clicks": clicks})))
    return {FILE_KEY: path.name, HASH_KEY: sha256_file(path)}


def _sorted_metadata(data: bytes) -> bytes:
    """Sort the metadata of a safetensors file by name.

    safetensors itself writes them in any order, but equal evaluations must give equal bytes.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    return data[:8] + text.ljust(end - 8) + data[end:]
