"""``run.profile_steps``: traces of chosen steps, and a table of where the time went.

The traces open in TensorBoard's trace viewer, Perfetto or ``chrome://tracing``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.engine.callback import Callback

if TYPE_CHECKING:
    from trainer.engine.step import Step

ROWS = 40
"""Number of operators in the table."""


class StepProfiler(Callback):
    """Callback that records chosen steps with ``torch.profiler``; neighbouring steps share a trace.

    A trace is ``profile/rank<R>.<first step>.pt.trace.json.gz`` (a name that TensorBoard's profiler
    plugin finds), its table ``log/profile-step<first step>-rank<R>.txt``.

    Args:
        steps: Steps to record; steps that the run does not reach are ignored.
        folder: The run folder.
        rank: Rank of this process.
        say: Called for every trace except one that the end of the run cuts off.
    """

    def __init__(
        self, steps: tuple[int, ...], folder: Path, rank: int, say: Callable[[str], None]
    ) -> None:
        self._steps = frozenset(steps)
        self._folder, self._rank, self._say = folder, rank, say
        self._running: Any = None
        self._since = 0
        self._last = 0

    def __exit__(self, *_: object) -> None:
        """Write the current recording."""
        if self._running is not None:
            self._stop()

    def before_step(self, step: "Step") -> None:
        """Start or stop recording."""
        if self._running is not None and step.number not in self._steps:
            self._say(self._stop())
        if self._running is None and step.number in self._steps:
            self._start(step.number)
        self._last = step.number

    def _start(self, step: int) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._running = profile(activities=activities)
        self._since = step
        self._running.start()

    def _stop(self) -> str:
        """Write the recording, and return a line with its path."""
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
        return f"profile of steps {self._since} to {self._last}: {trace} and {table}"
