"""Plot of quality against speed, one labelled point per model, as a PNG (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.files import atomic_file
from shards.plot import PlotUnavailable
from trainer.evaluate.bootstrap import CONFIDENCE
from trainer.evaluate.report import Ceiling, Row

_STYLE = {
    "student": ("o", "#0b6e99", "distilled student"),
    "plain": ("s", "#c2571a", "finetuned without teachers"),
    "teacher": ("^", "#5b4b8a", "post-trained teacher"),
    "other": ("D", "#5a6570", "other"),
    "baseline": ("v", "#8a8a8a", "baseline"),
}
_OFFSETS = (
    *((9, 7, "left"), (9, -13, "left"), (-9, 7, "right"), (-9, -13, "right")),
    *((0, 12, "center"), (0, -19, "center"), (12, 20, "left"), (-12, 20, "right")),
    *((12, -27, "left"), (-12, -27, "right"), (0, 30, "center"), (0, -38, "center")),
)
"""Offsets of a label from its marker in points, best first."""


def plot_quality_speed(
    rows: Sequence[Row], path: str | Path, ceilings: Sequence[Ceiling] = ()
) -> int:
    """Draw AUC against articles encoded per second.

    Args:
        rows: Models; those without a speed (baselines) are left out.
        path: Path of the PNG; its folder must exist.
        ceilings: Best reachable AUC, drawn as lines.

    Returns:
        The number of models drawn.

    Raises:
        PlotUnavailable: matplotlib is missing; the message says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotUnavailable(
            f"no plot, because matplotlib is not installed ({error}); pip install "
            "'tiny-newsrec[report]' and run tnr report again"
        ) from error

    drawn = [row for row in rows if row.rate is not None]
    figure = Figure(figsize=(8.4, 5.2), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for role, (marker, color, label) in _STYLE.items():
        chosen = [row for row in drawn if row.role == role]
        if chosen:
            _draw_points(axes, chosen, marker, color, label)
    for ceiling, style in zip(ceilings, ("--", ":"), strict=False):
        auc = ceiling.metrics["auc"]
        axes.axhline(auc, color="#3a3a3a", linestyle=style, linewidth=1.2, zorder=1)
    _frame(axes, drawn, ceilings)
    _label_points(figure, canvas, axes, drawn, ceilings)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
    return len(drawn)


def _draw_points(axes: Any, rows: Sequence[Row], marker: str, color: str, label: str) -> None:
    """Draw markers with a thin bar for users and a broad bar for runs."""
    x = [row.rate.mean for row in rows if row.rate is not None]
    y = [row.metrics["auc"].mean for row in rows]
    ends = [_interval(row) for row in rows]
    # A percentile interval may exclude the mean, and matplotlib refuses negative lengths.
    below = [max(mean - low, 0.0) for mean, (low, _) in zip(y, ends, strict=True)]
    above = [max(high - mean, 0.0) for mean, (_, high) in zip(y, ends, strict=True)]
    spread = [row.metrics["auc"].std for row in rows]
    if any(spread):
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=color, elinewidth=5, alpha=0.3)
    axes.errorbar(
        x,
        y,
        yerr=[below, above],
        fmt=marker,
        color=color,
        markersize=8,
        markeredgecolor="white",
        markeredgewidth=0.8,
        elinewidth=1.2,
        capsize=3 if any(row.intervals is not None for row in rows) else 0,
        label=label,
        zorder=3,
    )


def _interval(row: Row) -> tuple[float, float]:
    """Return the AUC's interval over users; without one, the mean twice (no bar)."""
    mean = row.metrics["auc"].mean
    return (mean, mean) if row.intervals is None else row.intervals["auc"]


def _reach(row: Row) -> tuple[float, float]:
    """Return the lowest and highest AUC that a model's bars reach."""
    low, high = _interval(row)
    auc = row.metrics["auc"]
    return min(low, auc.mean - auc.std), max(high, auc.mean + auc.std)


def _bars(rows: Sequence[Row]) -> str:
    """Explain the bars, for the axis label."""
    kinds = []
    if any(row.intervals is not None for row in rows):
        kinds.append(f"thin bars: {CONFIDENCE:.0%} interval over users")
    if any(row.metrics["auc"].std for row in rows):
        kinds.append("broad bars: ± standard deviation over runs")
    return "; ".join(kinds)


def _frame(axes: Any, rows: Sequence[Row], ceilings: Sequence[Ceiling]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rates = [row.rate.mean for row in rows if row.rate is not None] or [1.0]
    axes.set_autoscale_on(False)  # it would warn about points of equal speed
    axes.set_xlim(min(rates) / 1.8, max(rates) * 1.8)
    ends = [end for row in rows for end in _reach(row)]
    ends += [ceiling.metrics["auc"] for ceiling in ceilings]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = max(high - low, 0.01)
    axes.set_ylim(low - 0.14 * room, high + 0.14 * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("articles encoded per second (log scale)")
    axes.set_ylabel("AUC (mean over impressions)")
    axes.set_title("Quality against speed", loc="left", fontweight="bold")
    axes.set_title(_bars(rows), loc="right", fontsize=8.5, color="#3a3a3a")
    axes.grid(True, color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if rows:
        axes.figure.legend(loc="outside lower center", ncols=len(_STYLE), frameon=False)


def _label_points(
    figure: Any, canvas: Any, axes: Any, rows: Sequence[Row], ceilings: Sequence[Ceiling]
) -> None:
    """Place each name so that it overlaps markers, names and lines as little as possible."""
    from matplotlib.transforms import Bbox

    canvas.draw()
    renderer, inside = canvas.get_renderer(), axes.get_window_extent()
    scale = figure.dpi / 72.0
    taken: list[Any] = []
    for ceiling in ceilings:
        _, y = axes.transData.transform((1.0, ceiling.metrics["auc"]))
        taken.append(Bbox.from_extents(inside.x0, y - 1.5 * scale, inside.x1, y + 1.5 * scale))
    for row in rows:
        assert row.rate is not None
        auc = row.metrics["auc"]
        x, y = axes.transData.transform((row.rate.mean, auc.mean))
        low, high = (axes.transData.transform((row.rate.mean, end))[1] for end in _reach(row))
        half = 5.0 * scale
        bottom, top = min(low, y - half), max(high, y + half)
        taken.append(Bbox.from_extents(x - half, bottom, x + half, top))
    for ceiling in ceilings:
        label = axes.annotate(
            f"{ceiling.name} {ceiling.metrics['auc']:.3f}",
            (0.0, ceiling.metrics["auc"]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8.5,
            color="#3a3a3a",
        )
        taken.append(_place(label, ((6, 4, "left"), (6, -12, "left")), taken, inside, renderer))
    # Crowded points first, because they have the fewest free places.
    for row in sorted(rows, key=lambda row: _crowd(row, rows)):
        assert row.rate is not None
        label = axes.annotate(
            row.name,
            (row.rate.mean, row.metrics["auc"].mean),
            xytext=(0, 0),
            textcoords="offset points",
            parse_math=False,  # a "$" in a name is literal
            fontsize=9,
            color=_STYLE.get(row.role, _STYLE["other"])[1],
        )
        taken.append(_place(label, _OFFSETS, taken, inside, renderer))


def _place(label: Any, offsets: Sequence[Any], taken: list[Any], inside: Any, renderer: Any) -> Any:
    """Move a label to the offset with the least overlap; return its box there."""
    best, least = None, float("inf")
    for x, y, side in offsets:
        label.set_position((x, y))
        label.set_horizontalalignment(side)
        box = label.get_window_extent(renderer)
        cost = sum(_overlap(box, other) for other in taken)
        cost += box.width * box.height - _overlap(box, inside)  # the part outside the axes
        if cost < least - 1e-9:
            best, least = (x, y, side, box), cost
        if cost < 1e-9:
            break
    assert best is not None
    label.set_position(best[:2])
    label.set_horizontalalignment(best[2])
    return best[3]


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)


def _crowd(row: Row, rows: Sequence[Row]) -> float:
    """Return the distance to the nearest other point, relative to the largest speed ratio."""
    assert row.rate is not None
    return min(
        (
            abs(row.rate.mean / other.rate.mean - 1.0)
            + 20 * abs(row.metrics["auc"].mean - other.metrics["auc"].mean)
            for other in rows
            if other is not row and other.rate is not None
        ),
        default=0.0,
    )
