"""The metrics of single impressions, in a file beside an evaluation's record.

What confidence intervals and paired comparisons of two models are computed from. A safetensors file
with one row for each impression that counts:

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
"""Entry of the record: the file's name, in the record's own folder."""
HASH_KEY = "impressions_sha256"


def write_impressions(
    record: Path, metrics: Metrics, users: np.ndarray, clicks: str
) -> dict[str, str]:
    """Write the values of every impression that counts beside a record.

    Args:
        record: Where the record will be written; ``x.json`` gets ``x.impressions.safetensors``.
        metrics: Of all impressions of the set, in its order.
        users: int32[n], the user of each.
        clicks: Fingerprint of the impression set.

    Returns:
        What the record says of the file: its name and its sha256.
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
    """A safetensors file whose metadata come in the order of their names; safetensors itself writes
    them in any, and equal evaluations are to be equal bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    return data[:8] + text.ljust(end - 8) + data[end:]
