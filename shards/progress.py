"""Show the progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TextIO, TypeVar

_LINE_EVERY_S = 30.0

T = TypeVar("T")


class Progress:
    """Shows how far a job is, its rate and the time left.

    On a terminal it is a tqdm bar; elsewhere it prints a line every half minute, so that a job of
    seconds prints nothing and the log of a long job stays short.

    Example::

        with Progress(total=1000, desc="encode", unit="articles") as bar:
            bar.update(64)
    """

    def __init__(
        self,
        total: int | None,
        desc: str,
        unit: str,
        *,
        stream: TextIO | None = None,
        line_every_s: float = _LINE_EVERY_S,
    ) -> None:
        """Start the clock.

        Args:
            total: Number of units, or None if it is unknown.
            desc: The job, in a word or two.
            unit: The counted unit; ``B`` is shown with decimal prefixes.
            stream: Output stream; standard error by default.
            line_every_s: Seconds between plain lines.
        """
        self.total = total
        self.desc = desc
        self.unit = unit
        self.done = 0
        self._stream = stream if stream is not None else sys.stderr
        self._line_every_s = line_every_s
        self._start_s = self._last_line_s = time.monotonic()
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                desc=desc,
                unit=unit if unit == "B" else f" {unit}",
                unit_scale=unit == "B",
                file=self._stream,
                leave=False,
            )

    def update(self, units: int = 1) -> None:
        """Count ``units`` more as done."""
        self.done += units
        if self._bar is not None:
            self._bar.update(units)
            return
        now_s = time.monotonic()
        if now_s - self._last_line_s >= self._line_every_s:
            self._last_line_s = now_s
            print(self.line(now_s - self._start_s), file=self._stream, flush=True)

    def skip(self, units: int) -> None:
        """Subtract earlier work from the total, so that rate and time left describe this run."""
        if self.total is None:
            return
        self.total -= units
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.refresh()

    def line(self, elapsed_s: float) -> str:
        """Return the plain line after ``elapsed_s`` seconds."""
        rate = self.done / elapsed_s if elapsed_s > 0 else 0.0
        text = f"{self.desc}: {_count(self.done, self.unit)}"
        if self.total:
            share_pct = 100 * self.done / self.total
            text += f" of {_count(self.total, self.unit)} ({share_pct:.0f}%)"
        text += f", {_count(rate, self.unit)}/s"
        if self.total and rate > 0:
            text += f", {format_duration((self.total - self.done) / rate)} left"
        return text

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        """Return itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        self.close()


def progress(iterable: Iterable[T], total: int | None, desc: str, unit: str) -> Iterator[T]:
    """Yield from ``iterable``, and show the progress with one unit per item.

    Args:
        iterable: The items.
        total: Number of items; None takes ``len(iterable)`` if it has one.
        desc: The job, in a word or two.
        unit: Name of the items, in the plural.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(total, desc, unit) as shown:
        for item in iterable:
            yield item
            shown.update()


def format_duration(seconds: float) -> str:
    """Format a duration for people: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _count(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.3g} {unit}"
