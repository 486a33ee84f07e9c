"""Metrics of single impressions, as ``tnr evaluate`` writes them next to its record.

A safetensors file with ``row`` int64[n], ``user`` int32[n] and float64[n] for each metric, over the
impressions that count (those with a clicked and another candidate), in the order of the log; its
metadata name the format and the fingerprint of the click log. The record names the file, relative
to itself, as ``impressions_file``.

Legend: n impressions that count, K metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import open_regular, sha256_file
from trainer.errors import DamageError, DataError
from trainer.evaluate.impressions import FILE_KEY, FORMAT, HASH_KEY
from trainer.evaluate.metrics import METRIC_NAMES

_TYPES = {"row": np.int64, "user": np.int32} | dict.fromkeys(METRIC_NAMES, np.float64)
_CLOSE = 1e-9


class MissingImpressions(DataError):
    """A record names a missing file, perhaps because only the record was copied."""


@dataclass(frozen=True, kw_only=True)
class PerImpression:
    """Metrics of every impression that counts.

    Attributes:
        rows: int64[n], ascending rows of the impression set.
        users: int32[n], users by their numbers in the log's click column.
        values_nK: float64[n, K] in the order of ``METRIC_NAMES``.
        clicks: Fingerprint of the click log.
        name: Name in messages.
    """

    rows: np.ndarray
    users: np.ndarray
    values_nK: np.ndarray
    clicks: str
    name: str

    @property
    def num_users(self) -> int:
        """Number of users of the impressions."""
        return len(np.unique(self.users))

    def check_same(self, other: PerImpression) -> None:
        """Check that both have exactly the same impressions.

        Raises:
            DataError: The impressions differ; the message names the difference.
        """
        names = f"{self.name} and {other.name}"
        if self.clicks != other.clicks:
            raise DataError(
                f"{names} are of different click logs ({self.clicks[:12]}… and "
                f"{other.clicks[:12]}…); evaluate both on one log to compare them"
            )
        if len(self.rows) != len(other.rows) or (self.rows != other.rows).any():
            only = np.setxor1d(self.rows, other.rows)
            raise DataError(
                f"{names} are of different impressions: {len(self.rows):,} and "
                f"{len(other.rows):,}, and only one of them has row {only[0]}; evaluate both on "
                "all of the log"
            )
        if (self.users != other.users).any():
            row = self.rows[np.argmax(self.users != other.users)]
            raise DataError(f"{names} name different users for row {row}; evaluate both again")


def read_per_impression(path: str | Path, name: str | None = None) -> PerImpression:
    """Read a file of single impressions' metrics.

    Args:
        path: The file.
        name: Name in messages; None uses the path.

    Raises:
        MissingImpressions: The file does not exist.
        DataError: The file has another format, or no impressions.
        DamageError: The file is unreadable or has wrong content.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists():
        raise MissingImpressions(
            f"{path} does not exist; 'tnr evaluate --out' writes it next to the record"
        )
    open_regular(path).close()
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys() if key in _TYPES}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # safetensors raises the last two for types that NumPy lacks, such as bfloat16.
        raise DamageError(f"{path} cannot be read: {error}; evaluate again") from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path}: format {metadata.get('format')!r}, expected {FORMAT!r}")
    _check(path, tensors)
    return PerImpression(
        rows=tensors["row"],
        users=tensors["user"],
        values_nK=np.stack([tensors[metric] for metric in METRIC_NAMES], axis=1),
        clicks=str(metadata.get("clicks")),
        name=name or str(path),
    )


def of_record(record: dict[str, Any], file: str | Path) -> PerImpression | None:
    """Read the single impressions of an evaluation.

    Args:
        record: Record from ``tnr evaluate --out``.
        file: Path of the record.

    Returns:
        The metrics; None if the record does not name such a file.

    Raises:
        MissingImpressions: The named file does not exist.
        DataError: The file belongs to another log than the record.
        DamageError: The file is unreadable, or was not written with the record.
    """
    named = record.get(FILE_KEY)
    if not named:
        return None
    path = Path(file).parent / str(named)
    found = read_per_impression(path, name=str(file))
    wanted = str((record.get("data") or {}).get("impressions_fingerprint"))
    if found.clicks != wanted:
        raise DataError(
            f"{path} belongs to click log {found.clicks[:12]}…, but {file} to {wanted[:12]}…; "
            "evaluate again"
        )
    digest = record.get(HASH_KEY)
    if digest is not None and sha256_file(path) != digest:
        raise DamageError(
            f"{path} is not the file that was written with {file} (its sha256 differs): it is "
            "damaged or belongs to another evaluation; evaluate again"
        )
    for metric, mean in zip(METRIC_NAMES, found.values_nK.mean(axis=0), strict=True):
        if abs(mean - record["metrics"][metric]) > _CLOSE:
            raise DamageError(
                f"{path} has a mean {metric} of {mean:.6f}, but {file} says "
                f"{record['metrics'][metric]:.6f}: they belong to different evaluations; evaluate "
                "again"
            )
    return found


def average_runs(runs: Sequence[PerImpression], name: str) -> PerImpression:
    """Average the metrics of each impression over several runs of one model.

    Raises:
        DataError: The runs have different impressions.
    """
    for other in runs[1:]:
        runs[0].check_same(other)
    values_nK = np.mean([run.values_nK for run in runs], axis=0)
    first = runs[0]
    return PerImpression(
        rows=first.rows, users=first.users, values_nK=values_nK, clicks=first.clicks, name=name
    )


def _check(path: Path, tensors: dict[str, np.ndarray]) -> None:
    missing = sorted(_TYPES.keys() - tensors.keys())
    if missing:
        raise DamageError(f"{path} has no {', '.join(missing)}; evaluate again")
    num = len(tensors["row"])
    for key, kind in _TYPES.items():
        found = tensors[key]
        if found.shape != (num,) or found.dtype != kind:
            raise DamageError(
                f"{path}: {key} is {found.dtype}{list(found.shape)}, expected "
                f"{np.dtype(kind)}[{num}]; evaluate again"
            )
    if num == 0:
        raise DataError(f"{path} has no impressions")
    if (np.diff(tensors["row"]) <= 0).any():
        raise DamageError(f"{path}: its rows are not ascending; evaluate again")
    broken = [metric for metric in METRIC_NAMES if not np.isfinite(tensors[metric]).all()]
    if broken:
        raise DamageError(f"{path}: {', '.join(broken)} is not finite; evaluate again")
