"""Comparison of models on the same resampled users: intervals, and intervals of differences.

Several runs of a name are first averaged impression by impression. The comparison is then about the
mean of these particular runs; how much another training run would differ is a separate question,
which the spread over seeds answers.

Legend: n impressions, U users, R resamples, K metrics, P models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.errors import DataError, UsageError
from trainer.evaluate.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    UserSums,
    intervals,
    resampled_means,
    sign_flip_test,
)
from trainer.evaluate.markdown import align
from trainer.evaluate.metrics import METRIC_NAMES
from trainer.evaluate.per_impression import (
    MissingImpressions,
    PerImpression,
    average_runs,
    of_record,
)
from trainer.evaluate.report import TITLES, Spread, by_name

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """Models evaluated on the same repeatedly drawn users.

    Attributes:
        names: Names of the P models.
        sums: Sums by user, with columns model by model and metric by metric.
        draws_RPK: float64[R, P, K] means of the resamples.
        num_impressions: Number of impressions, n.
    """

    names: tuple[str, ...]
    sums: UserSums
    draws_RPK: np.ndarray
    num_impressions: int

    @property
    def resamples(self) -> int:
        """Number of resamples, R."""
        return len(self.draws_RPK)

    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Return the interval of each metric of each model, by name and metric."""
        return {
            name: dict(zip(METRIC_NAMES, intervals(self.draws_RPK[:, place]), strict=True))
            for place, name in enumerate(self.names)
        }

    def sums_of(self, name: str) -> np.ndarray:
        """Return the sums of one model by user, float64[U, K]."""
        start = self.names.index(name) * len(METRIC_NAMES)
        return self.sums.sums_UK[:, start : start + len(METRIC_NAMES)]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of one metric between two models."""

    first: float
    second: float
    interval: Interval
    """Interval of first minus second."""
    p: float
    by_seed: Spread | None
    """First minus second over pairs with the same training seed; None with fewer than two pairs."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of two models on the same impressions."""

    first: str
    second: str
    metrics: dict[str, Difference]
    num_impressions: int
    num_users: int
    resamples: int
    runs: tuple[int, int]


def per_impression_models(records: Records) -> tuple[list[PerImpression], list[str]]:
    """Read every name's values by impression, averaged over its runs.

    Args:
        records: Records from :func:`trainer.evaluate.report.read_evaluations`.

    Returns:
        The models with such values for all their runs; and a line for each name that has values for
        only some runs, or whose file is missing.

    Raises:
        DataError: The models have different impressions.
        DamageError: A file is damaged.
    """
    models: list[PerImpression] = []
    lacking: list[str] = []
    for name, group in by_name(records).items():
        runs = []
        for record in group:
            try:
                runs.append(of_record(record, record["file"]))
            except MissingImpressions as error:
                lacking.append(f"no interval for {name}: {error}")
                runs.append(None)
        known = [run for run in runs if run is not None]
        if len(known) == len(runs):
            models.append(average_runs(known, name))
        elif known:
            lacking.append(
                f"no interval for {name}: only {len(known)} of its {len(runs)} runs have results "
                "by impression; evaluate the others again"
            )
    for other in models[1:]:
        models[0].check_same(other)
    return models, lacking


def resample(models: Sequence[PerImpression], resamples: int = RESAMPLES) -> Resampled:
    """Draw users once for all models together.

    Args:
        models: At least one model, all with the same impressions.
        resamples: Number of resamples, R.

    Raises:
        DataError: All impressions belong to one user, so there is nothing to draw from.
    """
    first = models[0]
    sums = UserSums.of(first.users, np.concatenate([m.values_nK for m in models], axis=1))
    if sums.num_users < 2:
        raise DataError(
            f"all {len(first.rows):,} impressions of {first.name} belong to one user, so they say "
            "nothing about other users; intervals need a log that distinguishes users"
        )
    draws = resampled_means(sums, resamples)
    return Resampled(
        names=tuple(model.name for model in models),
        sums=sums,
        draws_RPK=draws.reshape(resamples, len(models), len(METRIC_NAMES)),
        num_impressions=len(first.rows),
    )


def compare(resampled: Resampled, records: Records, first: str, second: str) -> Comparison:
    """Compare two models: difference of means, its interval and the paired test.

    Args:
        resampled: Contains both models.
        records: Evaluations, for the number of runs and their seeds.
        first: Name of the first model.
        second: Name of the second model; differences are first minus second.
    """
    sums_UK = resampled.sums_of(first) - resampled.sums_of(second)
    counts_U = resampled.sums.counts_U
    places = [resampled.names.index(name) for name in (first, second)]
    draws_RK = resampled.draws_RPK[:, places[0]] - resampled.draws_RPK[:, places[1]]
    p_K = sign_flip_test(UserSums(counts_U, sums_UK), resampled.resamples)
    means = [resampled.sums_of(name).sum(axis=0) / counts_U.sum() for name in (first, second)]
    groups = by_name(records)
    return Comparison(
        first=first,
        second=second,
        metrics={
            metric: Difference(
                first=float(means[0][k]),
                second=float(means[1][k]),
                interval=interval,
                p=float(p_K[k]),
                by_seed=_by_seed(groups[first], groups[second], metric),
            )
            for k, (metric, interval) in enumerate(
                zip(METRIC_NAMES, intervals(draws_RK), strict=True)
            )
        },
        num_impressions=resampled.num_impressions,
        num_users=resampled.sums.num_users,
        resamples=resampled.resamples,
        runs=(len(groups[first]), len(groups[second])),
    )


def pairs_to_compare(records: Records, against: str | None) -> list[tuple[str, str]]:
    """Choose the pairs of names to compare.

    Args:
        records: Evaluations, in the order in which they were given.
        against: Name that all others are compared with; None if there must be two names, of which
            the first one given is compared with the other.

    Raises:
        UsageError: The name does not exist, or there are too few or too many names.
    """
    names = list(by_name(records))
    if against is not None:
        if against not in names:
            raise UsageError(
                f"no evaluation is named {against!r}; expected one of {', '.join(names)}"
            )
        pairs = [(name, against) for name in names if name != against]
        if not pairs:
            raise UsageError(
                f"{against} is the only evaluation: name another one to compare it with"
            )
        return pairs
    if len(names) != 2:
        raise UsageError(
            f"--compare is for two models, but these evaluations are of {len(names)} "
            f"({', '.join(names)}); with more, --against NAME compares all others with one"
        )
    return [(names[0], names[1])]


def check_can_compare(pairs: Sequence[tuple[str, str]], models: Sequence[PerImpression]) -> None:
    """Check that all models to compare have results by impression.

    Raises:
        DataError: A model has no such results; the message says how to get them.
    """
    known = {model.name for model in models}
    lacking = sorted({name for pair in pairs for name in pair} - known)
    if lacking:
        raise DataError(
            f"no results by impression of {', '.join(lacking)}, so they cannot be compared user "
            "by user; 'tnr evaluate ... --out FILE' writes such results next to the record"
        )


def tell_apart(records: Records) -> list[dict[str, Any]]:
    """Add file names to evaluations of one name, so that they can be compared."""
    if len(records) == 2 and records[0]["name"] == records[1]["name"]:
        return [record | {"name": f"{record['name']} ({record['file']})"} for record in records]
    return list(records)


def comparison_text(comparison: Comparison) -> str:
    """Format the comparison of two models as a table with a heading line."""
    seeds = any(difference.by_seed for difference in comparison.metrics.values())
    percent = f"{CONFIDENCE:.0%} interval"
    head = ["metric", comparison.first, comparison.second, "difference", percent, "p"]
    lines = []
    for metric, found in comparison.metrics.items():
        line = [TITLES[metric], f"{found.first:.4f}", f"{found.second:.4f}"]
        line += [f"{found.first - found.second:+.4f}", found.interval.text(sign=True)]
        line.append(f"{found.p:.4f}")
        if seeds:
            line.append("" if found.by_seed is None else found.by_seed.text(sign=True))
        lines.append(line)
    title = (
        f"{comparison.first} minus {comparison.second}: {comparison.num_impressions:,} impressions "
        f"of {comparison.num_users:,} users"
    )
    return f"{title}\n\n{align(head + ['by seed'] * seeds, lines)}"


def comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Explain the numbers of comparisons and their limits, one line each."""
    draws = comparisons[0].resamples
    notes = [
        f"Interval: bootstrap over users, percentiles of {draws:,} resamples, the same for both "
        f"models. p: two-sided sign-flip test over users, {draws:,} flips, so that it cannot be "
        f"less than {1 / (draws + 1):.1g}.",
        "Both cover the choice of users, not the training: they describe these trained models, "
        "and another training seed may differ by more.",
    ]
    several = {
        f"{name} is the mean of {runs} runs"
        for one in comparisons
        for name, runs in zip((one.first, one.second), one.runs, strict=True)
        if runs > 1
    }
    if several:
        notes.append(
            f"{', '.join(sorted(several))}: every impression's metrics are averaged over them "
            "first."
        )
    if any(found.by_seed for one in comparisons for found in one.metrics.values()):
        notes.append(
            "by seed: mean ± sample standard deviation of the difference over runs of the same "
            "training seed."
        )
    if len(comparisons) > 1:
        notes.append(
            f"These are {len(comparisons)} comparisons, and each p-value is for one comparison "
            "alone; for a claim about the best of them, multiply by their number (Bonferroni)."
        )
    return notes


def _by_seed(first: Records, second: Records, metric: str) -> Spread | None:
    """Return differences of runs with the same training seed.

    A teacher's seed is the number of its copy.
    """
    if "teacher" in (first[0].get("role"), second[0].get("role")):
        return None
    seconds = {record.get("seed"): float(record["metrics"][metric]) for record in second}
    paired = [
        float(record["metrics"][metric]) - seconds[record.get("seed")]
        for record in first
        if record.get("seed") in seconds
    ]
    return Spread.of(paired) if len(paired) > 1 else None
