"""The report as Markdown: the table, its basis, intervals, segments and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluate.bootstrap import CONFIDENCE
from trainer.evaluate.compare import Comparison, Resampled, comparison_notes, comparison_text
from trainer.evaluate.markdown import align
from trainer.evaluate.report import TITLES, Row, Spread, by_name

_KINDS = {
    "history": "Clicks in the user's history",
    "cold": "News not seen in training",
    "category": "Category of the clicked article",
    "hour": "Hour of the day, by the log's clock",
}
_NAMES = {
    "clicked_all_cold": "all clicked are cold",
    "clicked_some_cold": "some clicked are cold",
    "clicked_all_seen": "all clicked were seen",
}

SEGMENTS = "## Segments"
"""Heading of the report's last part."""


def text_report(
    rows: Sequence[Row],
    records: Sequence[dict[str, Any]],
    shown: str,
    resampled: Resampled | None = None,
    comparisons: Sequence[Comparison] = (),
) -> str:
    """Format the whole report.

    Args:
        rows: Models in the order of the table.
        records: Evaluations of the models.
        shown: The table.
        resampled: Source of the rows' intervals.
        comparisons: Comparisons of two models each.
    """
    parts = ["# Evaluation", "", shown, "", *_notes(rows, records)]
    if resampled is not None:
        parts += ["", f"## {CONFIDENCE:.0%} intervals", "", interval_table(rows), ""]
        parts.append(
            f"Bootstrap over the {resampled.sums.num_users:,} users, percentiles of "
            f"{resampled.resamples:,} resamples: these trained models on other users. It does not "
            "cover training again with another seed. Intervals of two models may overlap "
            "although one is clearly better, because both have the same easy and hard users: see "
            "`tnr report --compare`."
        )
    if comparisons:
        parts += ["", "## Comparisons"]
        for comparison in comparisons:
            parts += ["", comparison_text(comparison)]
        parts += ["", *comparison_notes(comparisons)]
    tables = segment_tables(rows, records)
    if tables:
        parts += ["", SEGMENTS, "", "AUC of the models on parts of the log."]
        if any(row.runs > 1 for row in rows):
            parts[-1] += " Several runs of a name: their mean."
        for title, lines in tables:
            parts += ["", f"### {title}", "", lines]
    return "\n".join(parts) + "\n"


def interval_table(rows: Sequence[Row]) -> str:
    """Format the intervals of all metrics of the models that have them."""
    lines = [
        [row.name, *(row.intervals[metric].text() for metric in TITLES)]
        for row in rows
        if row.intervals is not None
    ]
    return align(["model", *TITLES.values()], lines)


def segment_tables(rows: Sequence[Row], records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Format a table of the models' AUC for each kind of segment.

    Args:
        rows: Models in the order of the columns.
        records: Evaluations with ``segments``: by kind and part, the number of ``impressions`` and
            metrics. Anything else is left out.

    Returns:
        (title, table) of each kind that any model has.
    """
    groups = by_name(records)
    kinds = dict.fromkeys(kind for record in records for kind in record.get("segments") or {})
    tables = []
    for kind in kinds:
        columns = {row.name: _parts(groups[row.name], kind) for row in rows}
        columns = {name: parts for name, parts in columns.items() if parts}
        counts: dict[str, int] = {}
        for parts in columns.values():
            for part, (count, _) in parts.items():
                counts.setdefault(part, count)
        if not counts:
            continue
        lines = [
            [_NAMES.get(part, part), f"{counts[part]:,}"]
            + [_auc(parts.get(part)) for parts in columns.values()]
            for part in counts
        ]
        text = align(["", "impressions", *columns], lines)
        share = next((found for found in map(_cold_share, records) if found is not None), None)
        if kind == "cold" and share is not None:
            text += f"\n\n{share:.1%} of the candidates are cold."
        tables.append((_KINDS.get(kind, kind.capitalize()), text))
    return tables


def _parts(group: Sequence[Mapping[str, Any]], kind: str) -> dict[str, tuple[int, float]]:
    """Return (impressions, AUC) of each part of the log, averaged over a model's runs."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in group:
        for name, part in ((record.get("segments") or {}).get(kind) or {}).items():
            if isinstance(part, Mapping) and part.get("auc") is not None:
                found.setdefault(str(name), []).append(part)
    return {
        name: (int(parts[0]["impressions"]), Spread.of([float(p["auc"]) for p in parts]).mean)
        for name, parts in found.items()
    }


def _cold_share(record: Mapping[str, Any]) -> float | None:
    share = ((record.get("segments") or {}).get("cold") or {}).get("cold_candidates_share")
    return None if share is None else float(share)


def _auc(part: tuple[int, float] | None) -> str:
    return "" if part is None else f"{part[1]:.4f}"


def _notes(rows: Sequence[Row], records: Sequence[dict[str, Any]]) -> list[str]:
    counts = records[0].get("counts", {})
    data = records[0].get("data", {})
    notes = [
        f"Click log: {data.get('impressions', 'unknown')}, {counts.get('impressions', 0):,} "
        f"impressions ({counts.get('skipped', 0):,} skipped), {counts.get('articles', 0):,} "
        "articles. Every metric is the mean over impressions.",
    ]
    if any(row.runs > 1 for row in rows):
        notes.append(
            "Several runs of a name: mean ± sample standard deviation; of the teacher, over its M "
            "copies."
        )
    if any(row.gain is not None for row in rows):
        notes.append(
            "vs. plain: AUC minus that of the model of the same depth finetuned without "
            "teachers; for students seed by seed if both have the seed."
        )
    devices = sorted({str(r["speed"]["device"]) for r in records if "speed" in r})
    if devices:
        notes.append(f"articles/s: titles encoded per second on {', '.join(devices)}.")
    return notes
