"""Draw a shard set's statistics (needs matplotlib)."""

from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import TinyNewsRecError, UsageError, one_line
from shards.files import atomic_file
from shards.lengths import Lengths
from shards.os_errors import naming
from shards.stats import Stats

_INK, _BAR, _LINE = "#22313a", "#7fb2c9", "#c2571a"
_CATEGORIES = 15
_BINS = 60
_NAME = 24


class PlotUnavailable(TinyNewsRecError):
    """matplotlib is not installed; the numbers themselves do not need it."""


def plot_stats(stats: Stats, path: str | Path) -> None:
    """Draw length distributions, the text that each maximum length keeps, and categories.

    Args:
        stats: the statistics.
        path: the PNG to write.

    Raises:
        PlotUnavailable: matplotlib is missing; the message says how to install it.
        UsageError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotUnavailable(
            f"no plot, because matplotlib is not installed ({error}); "
            "pip install 'tiny-newsrec[report]' and run the command again"
        ) from error
    drawn = {name: lengths for name, lengths in stats.lengths.items() if len(lengths.values) > 1}
    panels = max(len(drawn) + (1 if stats.categories else 0), 1)
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(5.6 * columns, 3.2 * rows + 0.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        one_line(f"{Path(stats.path).name}: {stats.samples:,} {stats.kind}"),
        color=_INK,
        fontsize=12,
        parse_math=False,  # a "$" in a name is a plain character
    )
    handles: dict[str, Any] = {}
    for number, (name, lengths) in enumerate(drawn.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        handles |= _draw_lengths(axes, name, lengths, stats.limits.get(name))
    if stats.categories:
        _draw_categories(figure.add_subplot(rows, columns, panels), stats.categories, stats.kind)
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            title="by maximum length",
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8,
            title_fontsize=8,
        )
    try:
        with naming(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                figure.savefig(file, format="png")
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"--plot {path} cannot be written: {error.strerror or error}") from error


def _draw_lengths(axes: Any, name: str, lengths: Lengths, limit: int | None) -> dict[str, Any]:
    """Draw the share of samples by length, and the effect of a maximum length.

    Returns:
        The lines (share of text kept, share of samples left whole) by their names.
    """
    low, high = int(lengths.values[0]), max(int(lengths.percentile(0.995)), 1)
    width = max(1, -(-(high - low + 1) // _BINS))
    edges = np.arange(low, high + width + 1, width)
    shares, _ = np.histogram(lengths.values, bins=edges, weights=lengths.counts / lengths.num)
    axes.bar(edges[:-1], 100 * shares, width=0.9 * width, align="edge", color=_BAR)
    axes.set_xlim(low - width / 2, edges[-1] + width / 2)
    axes.set_xlabel(name if limit is None else f"{name} (the column cuts at {limit:,})")
    axes.set_ylabel("% of samples")
    _clip_tallest(axes, edges, 100 * shares)
    lines = axes.twinx()
    # The lengths before the cut are unknown, so the effect of longer maxima is unknown too.
    end = edges[-1] - 1 if limit is None else min(edges[-1] - 1, limit - 1)
    grid = np.unique(np.linspace(low, max(end, low), 200).astype(int))
    kept = [100 * lengths.kept(int(at)) for at in grid]
    whole = [100 * lengths.whole(int(at)) for at in grid]
    lines.plot(grid, kept, color=_LINE, linewidth=1.6, label="kept (of what is stored)")
    lines.plot(grid, whole, color=_INK, linewidth=1.2, linestyle="--", label="samples left whole")
    lines.set_ylim(0, 103)
    lines.set_ylabel("% by this maximum")
    note = f"mean {lengths.mean:,.1f}, median {lengths.percentile(0.5):,.0f}"
    if (beyond := 1 - lengths.whole(int(edges[-1]) - 1)) > 0:
        note += f"; {100 * beyond:.1f}% longer, up to {lengths.max:,}"
    axes.set_title(note, fontsize=9, color=_INK, loc="left")
    for each in (axes, lines):
        each.spines["top"].set_visible(False)
    handles, labels = lines.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def _clip_tallest(axes: Any, edges: np.ndarray, shares_pct: np.ndarray) -> None:
    """Cut off a bar that dwarfs all others, and write its height."""
    if len(shares_pct) < 3:
        return
    tallest = int(np.argmax(shares_pct))
    second = float(np.partition(shares_pct, -2)[-2])
    if shares_pct[tallest] > 4 * second > 0:
        axes.set_ylim(0, 2 * second)
        axes.annotate(
            f"{shares_pct[tallest]:.0f}% ↑",
            (edges[tallest], 1.88 * second),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _draw_categories(axes: Any, categories: dict[str, int], kind: str) -> None:
    shown = list(categories.items())[:_CATEGORIES]
    names = [name if len(name) <= _NAME else name[: _NAME - 1] + "…" for name, _ in shown]
    places = range(len(shown))
    axes.barh(places, [number for _, number in shown], color=_BAR)
    axes.set_yticks(places, [one_line(name) for name in names], fontsize=7, parse_math=False)
    axes.invert_yaxis()
    rest = len(categories) - len(shown)
    axes.set_title(
        f"categories ({len(categories):,}" + (f", {rest:,} not shown)" if rest else ")"),
        fontsize=9,
        color=_INK,
        loc="left",
    )
    axes.set_xlabel(kind)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
