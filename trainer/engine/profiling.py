"""``run.profile_steps``: traces of chosen steps for TensorBoard's trace viewer, Perfetto or
``chrome://tracing``, and a table of where the time went."""

from pathlib import Path
from typing import Any

ROWS = 40
"""Operators in the table."""


class StepProfiler:
    """Records chosen steps with ``torch.profiler``; neighbouring steps share one trace.

    A trace is ``profile/rank<R>.<first step>.pt.trace.json.gz`` (the names that TensorBoard's
    profiler plugin looks for), its table ``log/profile-step<first step>-rank<R>.txt``.

    Args:
        steps: The steps to record; those that never come are no mistake.
        folder: The run folder.
        rank: This process.
    """

    def __init__(self, steps: tuple[int, ...], folder: Path, rank: int) -> None:
        self._steps = frozenset(steps)
        self._folder, self._rank = folder, rank
        self._running: Any = None
        self._since = 0
        self._last = 0

    def __enter__(self) -> "StepProfiler":
        """Nothing is recorded yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is being recorded."""
        self.stop()

    def begin(self, step: int) -> list[str]:
        """A step begins: start or stop recording.

        Returns:
            A line for the log whenever a trace was written.
        """
        said = []
        if self._running is not None and step not in self._steps:
            said = self.stop()
        if self._running is None and step in self._steps:
            self._start(step)
        self._last = step
        return said

    def _start(self, step: int) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._running = profile(activities=activities)
        self._since = step
        self._running.start()

    def stop(self) -> list[str]:
        """Write what is being recorded, if anything; see :meth:`begin`."""
        if self._running is None:
            return []
        profiler, self._running = self._running, None
        profiler.stop()
        trace = self._folder / "profile" / f"rank{self._rank}.{self._since}.pt.trace.json.gz"
        table = self._folder / "log" / f"profile-step{self._since}-rank{self._rank}.txt"
        for path in (trace, table):
            path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
        averages = profiler.key_averages()
        order = "self_cpu_time_total"
        if any(getattr(event, "self_device_time_total", 0) for event in averages):
            order = "self_device_time_total"
        table.write_text(averages.table(sort_by=order, row_limit=ROWS), encoding="utf-8")
        return [f"profile of steps {self._since} to {self._last}: {trace} and {table}"]
