"""Table over evaluations: mean and spread over repetitions, and the gain of distillation.

Records of one name are repetitions of one model. Students and teachers are compared with the model
of the same depth that was finetuned without teachers: students seed by seed if both have the seed.
The spread is over training; the interval, with results by impression, is over users.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.files import read_json
from shards.periods import Period, parse_period
from trainer.errors import DamageError, DataError, UsageError
from trainer.evaluate.bootstrap import CONFIDENCE, Interval
from trainer.evaluate.markdown import align
from trainer.evaluate.metrics import METRIC_NAMES
from trainer.evaluate.record import Metric, check_type, read_evaluation

TITLES = {"auc": "AUC", "mrr": "MRR", "ndcg5": "nDCG@5", "ndcg10": "nDCG@10"}
AUC_INTERVAL = f"AUC, {CONFIDENCE:.0%} interval"
ROLE_ORDER = ("student", "plain", "teacher", "other", "baseline")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a few numbers."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Make the spread of some values; one value has deviation 0."""
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), std, len(values))

    def text(self, digits: int = 4, *, sign: bool = False) -> str:
        """Format as ``0.6831 ± 0.0012``; a single value has no deviation."""
        form = f"{'+' if sign else ''}.{digits}f"
        mean = format(self.mean, form)
        return mean if self.count == 1 else f"{mean} ± {self.std:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the report."""

    name: str
    role: str
    layers: int | None
    parameters: int | None
    metrics: dict[str, Spread]
    rate: Spread | None
    """Articles encoded per second; None for baselines."""
    gain: Spread | None
    """AUC minus that of the plain model of the same depth; None without such a model."""
    runs: int
    intervals: Mapping[str, Interval] | None = None
    """Interval of each metric over users; None without results by impression."""


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Best reachable metrics on a synthesized world's log, by what the ranker knows."""

    name: str
    metrics: dict[str, float]


def read_evaluations(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read the records in JSON files of ``tnr evaluate``, each with its path as ``file``.

    Raises:
        DataError: A file is missing or is not such a record, two records are the same evaluation,
            or the records belong to different logs or periods.
    """
    records = [read_evaluation(Path(path)) for path in paths]
    _check_distinct(records)
    logs = {record.get("data", {}).get("impressions_fingerprint"): record for record in records}
    if len(logs) > 1:
        if None in logs:
            raise DataError(
                f"{logs[None]['file']} does not name its click log "
                "(data.impressions_fingerprint), as others here do; evaluate it again"
            )
        raise DataError(
            f"the evaluations are of {len(logs)} different click logs, so their numbers cannot be "
            "in one table; report one log at a time"
        )
    periods = {str(_period(record)): record["file"] for record in records}
    if len(periods) > 1:
        named = (f"{period} ({file})" for period, file in sorted(periods.items()))
        raise DataError(
            f"the evaluations are of {len(periods)} different periods of the log: "
            f"{'; '.join(named)}; report one period at a time"
        )
    return records


def _check_distinct(records: Sequence[dict[str, Any]]) -> None:
    """Refuse an evaluation that is given twice, which would count as two runs.

    Raises:
        DataError: An evaluation is given twice; names both files.
    """
    known: dict[str, str] = {}
    for record in records:
        # In a copy, the results by impression have another name.
        own = {key: v for key, v in record.items() if key not in ("file", "impressions_file")}
        text = json.dumps(own, sort_keys=True)
        if text in known:
            raise DataError(
                f"{record['file']} holds the same evaluation as {known[text]}; give it once"
            )
        known[text] = record["file"]


def _period(record: Mapping[str, Any]) -> Period:
    """Return the period of a record; the whole log if it does not name one.

    Raises:
        DamageError: A bound is not a date or time, or the period is empty.
    """
    since, until = record.get("period") or (None, None)
    try:
        return parse_period(since, until, "period: ")
    except UsageError as error:
        raise DamageError(f"{record['file']} is not a record of 'tnr evaluate': {error}") from error


def repeated_seeds(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each name with several evaluations of the same seed.

    Records of a name count as runs of one model, and runs of one model have different seeds.
    """
    lines = []
    for name, group in by_name(records).items():
        files: dict[Any, list[str]] = {}
        for record in group:
            files.setdefault(record.get("seed"), []).append(record["file"])
        lines += [
            f"{' and '.join(same)} are all named {name}, with seed {seed}, and count as runs of "
            "one model; if they are different models, evaluate each with its own --name"
            for seed, same in files.items()
            if len(same) > 1
        ]
    return lines


def read_ceilings(path: str | Path) -> list[Ceiling]:
    """Read the best reachable metrics from the ``truth.json`` of a synthesized world.

    ``ceiling`` ranks by the true click probabilities; ``reader of histories`` ranks like a reader
    who knows every word, but knows users only by their clicks: a reference, not a limit.

    Raises:
        DataError: The file is missing or does not have such metrics.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source} does not exist; 'tnr shards synthesize' writes a truth.json")
    truth = read_json(source, dict[str, Any])
    ceilings = []
    for key, name in (("best", "ceiling"), ("history", "reader of histories")):
        names = {metric: f"{key}_{metric}" for metric in METRIC_NAMES}
        if all(place in truth for place in names.values()):
            metrics = {metric: truth[place] for metric, place in names.items()}
            check_type(metrics, dict[str, Metric], where=f"{source} ({key}_*)")
            ceilings.append(Ceiling(name=name, metrics=metrics))
    if not ceilings:
        raise DataError(f"{source} does not have a best AUC; is it a world's truth.json?")
    return ceilings


def by_name(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group evaluations by name, in the order of each name's first evaluation."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(str(record["name"]), []).append(record)
    return groups


def make_rows(
    records: Sequence[dict[str, Any]],
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> list[Row]:
    """Make one row per name, by role (students first) and number of layers.

    Args:
        records: Evaluations.
        intervals: Interval of each metric, by name, if known.
    """
    known = intervals or {}
    rows = [_row(name, group, records, known.get(name)) for name, group in by_name(records).items()]
    return sorted(rows, key=lambda row: (_rank(row.role), row.layers or 0, row.name))


def table(rows: Sequence[Row], ceilings: Sequence[Ceiling] = ()) -> str:
    """Format the rows as a Markdown table that also reads well as plain text."""
    several = any(row.runs > 1 for row in rows)
    gains = any(row.gain is not None for row in rows)
    bounds = any(row.intervals is not None for row in rows)
    head = ["model", "layers", "parameters", *TITLES.values()]
    head += [AUC_INTERVAL] * bounds + ["vs. plain (AUC)"] * gains
    head += ["articles/s"] + ["runs"] * several
    lines = []
    for row in rows:
        line = [row.name, _number(row.layers), _millions(row.parameters)]
        line += [row.metrics[name].text() for name in TITLES]
        if bounds:
            line.append("" if row.intervals is None else row.intervals["auc"].text())
        if gains:
            line.append("" if row.gain is None else row.gain.text(sign=True))
        line.append("" if row.rate is None else f"{row.rate.mean:,.0f}")
        lines.append(line + [str(row.runs)] * several)
    for ceiling in ceilings:
        line = [ceiling.name, "", "", *(f"{ceiling.metrics[name]:.4f}" for name in TITLES)]
        lines.append(line + [""] * (len(head) - len(line)))
    return align(head, lines)


def _row(
    name: str,
    group: list[dict[str, Any]],
    records: Sequence[dict[str, Any]],
    intervals: Mapping[str, Interval] | None,
) -> Row:
    first = group[0]
    rates = [r.get("speed", {}).get("articles_per_s") for r in group]
    known = [float(rate) for rate in rates if rate]
    return Row(
        name=name,
        role=str(first.get("role", "other")),
        layers=first.get("layers"),
        parameters=first.get("parameters"),
        metrics={
            metric: Spread.of([float(r["metrics"][metric]) for r in group]) for metric in TITLES
        },
        rate=Spread.of(known) if known else None,
        gain=_gain(group, records),
        runs=len(group),
        intervals=intervals,
    )


def _gain(group: list[dict[str, Any]], records: Sequence[dict[str, Any]]) -> Spread | None:
    """Return the AUC minus the plain model's of this depth, paired by seed if possible."""
    role = group[0].get("role")
    if role not in ("student", "teacher"):
        return None
    layers = group[0].get("layers")
    plain = [r for r in records if r.get("role") == "plain" and r.get("layers") == layers]
    if not plain:
        return None
    by_seed = {r.get("seed"): float(r["metrics"]["auc"]) for r in plain}
    paired = [
        float(r["metrics"]["auc"]) - by_seed[r.get("seed")]
        for r in group
        if role == "student" and r.get("seed") in by_seed  # a teacher's seed is the copy's number
    ]
    if paired:
        return Spread.of(paired)
    mean = statistics.fmean(by_seed.values())
    return Spread.of([statistics.fmean(float(r["metrics"]["auc"]) for r in group) - mean])


def _rank(role: str) -> int:
    return ROLE_ORDER.index(role) if role in ROLE_ORDER else len(ROLE_ORDER)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _millions(value: int | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value / 1e6:.2f} M"
