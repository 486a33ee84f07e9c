"""Schema of an evaluation's record, the JSON that ``tnr evaluate --out`` writes.

Records are made elsewhere, edited and copied, so readers check that values have the types that the
report computes with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from shards.errors import DamageError, DataError
from shards.files import parse_json, read_bytes
from shards.location import shown_line

_MAX_BYTES = 64 << 20

T = TypeVar("T")
Metric = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
"""Finite, and small enough that means and deviations are finite, too."""
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """MIND's four metrics."""

    auc: Metric
    mrr: Metric
    ndcg5: Metric
    ndcg10: Metric


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Encoding speed of a model, and its device."""

    device: str
    articles_per_s: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Amount of measured data."""

    impressions: Count = 0
    skipped: Count = 0
    articles: Count = 0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data that the metrics were measured on."""

    impressions: str = "unknown"
    impressions_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part of the log that a segment names."""

    impressions: Count
    auc: Metric | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One evaluation, as far as reports read it."""

    name: str
    metrics: Metrics
    role: str = "other"
    seed: int | None = None
    layers: Count | None = None
    parameters: Count | None = None
    speed: Speed | None = None
    counts: Counts = field(default_factory=Counts)
    data: Data = field(default_factory=Data)
    period: tuple[str | None, str | None] | None = None
    segments: dict[str, dict[str, Any] | None] | None = None
    impressions_file: str | None = None
    impressions_sha256: str | None = None


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read the record in a JSON file of ``tnr evaluate``; add its path as ``file``.

    Its texts are safe to print: each on one line, without keys of URLs.

    Raises:
        DataError: The file is missing or is not such a record.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; 'tnr evaluate ... --out {path}' writes it")
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the files in it: {path / '*.json'}")
    record = parse_json(read_bytes(path, limit=_MAX_BYTES), where=path)
    where = f"{path} is not a record of 'tnr evaluate'"
    checked: EvaluationRecord = check_type(record, EvaluationRecord, where=where)
    for kind, parts in (checked.segments or {}).items():
        for name, part in (parts or {}).items():
            if isinstance(part, dict) and "auc" in part:
                check_type(part, Part, where=f"{path}: segment {kind} {name}")
        if kind == "cold" and parts:
            share = parts.get("cold_candidates_share")
            check_type(share, Metric | None, where=f"{path}: cold_candidates_share")
    if checked.speed is None:
        record.pop("speed", None)  # null is the same as a missing value
    return _printable(dict(record)) | {"file": str(path)}


def _printable(record: dict[str, Any]) -> dict[str, Any]:
    """Make the texts of a checked record safe to print."""
    found: dict[str, Any] = {
        key: shown_line(record[key]) for key in ("name", "role") if key in record
    }
    for section, key in (("data", "impressions"), ("speed", "device")):
        inside = record.get(section)
        if inside and key in inside:
            found[section] = inside | {key: shown_line(inside[key])}
    if record.get("segments"):
        found["segments"] = {
            shown_line(kind): parts and {shown_line(name): part for name, part in parts.items()}
            for kind, parts in record["segments"].items()
        }
    return record | found


def check_type(value: Any, kind: type[T] | Any, *, where: object) -> T:
    """Check a value of parsed JSON against a type.

    Raises:
        DamageError: The type differs; the message begins with ``where`` and names the place.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise DamageError(f"{where}: {error}") from error
