"""TensorBoard: scalars, histograms, the run's row on the HPARAMS page, and grouped charts."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FINAL = (
    "train/loss",
    "train/loss_target",
    "train/accuracy",
    "speed/samples_per_s",
    "speed/tokens_per_s",
    "speed/mfu_pct",
)
"""Metrics of the HPARAMS page; a run shows its last value of each metric that it has."""

LAYOUT = {
    "Training": {
        "loss": ["Multiline", ["^train/loss(_(?!scale$).+)?$"]],
        "learning rate": ["Multiline", ["^train/lr"]],
        "accuracy": ["Multiline", ["^train/accuracy$"]],
        "gradient norm": ["Multiline", ["^train/grad_norm$"]],
    },
    "Validation": {
        "AUC": ["Multiline", ["^valid/(best_)?auc$"]],
        "MRR and nDCG": ["Multiline", ["^valid/(best_)?(mrr|ndcg)"]],
    },
    "Teachers": {
        "weights": ["Multiline", ["^teacher/.+/weight$"]],
        "entropy of the weights": ["Multiline", ["^teacher/weight_entropy$"]],
    },
    "Speed": {
        "throughput a second": ["Multiline", ["^speed/.+_per_s$"]],
        "percent": ["Multiline", ["^speed/.+_pct$"]],
        "memory (MiB)": ["Multiline", ["^speed/.*memory"]],
    },
}
"""Charts of the CUSTOM SCALARS page; their tags are regular expressions."""


NOT_COMPARED = (
    "run.dir",
    "run.log_every",
    "run.checkpoint_every",
    "run.keep_",
    "run.best_",
    "run.background_saves",
    "run.not_finite",
    "run.hang_timeout_s",
    "run.profile_steps",
    "run.peak_tflops",
    "run.copies.",
    "data.cache_",
    "data.fetch_",
    "data.workers",
    "data.articles",
    "data.clicks",
    "data.tokens",
    "run.export",
    "validation.clicks",
)
"""Prefixes of settings that do not affect what a run computes."""
COMPARED = ("data.clicks_since", "data.clicks_until")
"""Exceptions: settings with these prefixes that do affect it."""


class Board:
    """Event files of one run, all in one folder.

    Args:
        folder: Folder of the event files.
        resumed_step: Step after which an earlier attempt's records are hidden.
        settings: The run's settings by full name, for the HPARAMS page; empty leaves it out.
        finals: Metrics of that page that the first record does not have yet, such as a validation's
            best.
    """

    def __init__(
        self,
        folder: Path,
        resumed_step: int,
        settings: Mapping[str, Any],
        finals: Sequence[str] = (),
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _leave_errors_to_callers()
        self._writer: Any = SummaryWriter(str(folder), purge_step=resumed_step + 1, flush_secs=30)
        self._settings = {
            name: hparam(value)
            for name, value in settings.items()
            if name in COMPARED or not name.startswith(NOT_COMPARED)
        }
        self._finals = tuple(finals)
        self._is_described = False
        self._ending: Any = None

    def write(
        self, step: int, values: Mapping[str, float], histograms: Mapping[str, list[float]]
    ) -> None:
        """Write the scalars and histograms of one step."""
        if not self._is_described:
            self._describe(values)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for name, counts in histograms.items():
            self._writer.add_histogram_raw(f"{name}s", **bars(counts), global_step=step)

    def _describe(self, names: Iterable[str]) -> None:
        """Write the run's settings next to its metrics; ``add_hparams`` would add a run."""
        from torch.utils.tensorboard.summary import hparams

        self._is_described = True
        known = {*names, *self._finals}
        begins = {"Teachers": "teacher/", "Validation": "valid/"}
        left_out = {
            title for title, begin in begins.items() if not any(n.startswith(begin) for n in known)
        }
        shown = {title: charts for title, charts in LAYOUT.items() if title not in left_out}
        self._writer.add_custom_scalars(shown)
        if self._settings:
            metrics = dict.fromkeys([*self._finals, *(name for name in FINAL if name in known)])
            experiment, beginning, self._ending = hparams(self._settings, metrics)
            for summary in (experiment, beginning):
                self._writer.file_writer.add_summary(summary)

    def end(self) -> None:
        """Mark the run as finished on the HPARAMS page."""
        if self._ending is not None:
            self._writer.file_writer.add_summary(self._ending)

    def flush(self) -> None:
        """Make everything written so far durable."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def _leave_errors_to_callers() -> None:
    """Keep Python from printing errors of TensorBoard's thread; its next call raises them here."""
    before = threading.excepthook
    if getattr(before, "leaves_to_callers", False):
        return

    def hook(arguments: threading.ExceptHookArgs) -> None:
        is_writer = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (is_writer and isinstance(arguments.exc_value, OSError)):
            before(arguments)

    hook.leaves_to_callers = True  # type: ignore[attr-defined]
    threading.excepthook = hook


def bars(counts: list[float]) -> dict[str, Any]:
    """Return the arguments of ``add_histogram_raw`` for equal bars between 0 and 1."""
    width = 1.0 / len(counts)
    middles = [(place + 0.5) * width for place in range(len(counts))]
    pairs = list(zip(middles, counts, strict=True))
    return {
        "min": 0.0,
        "max": 1.0,
        "num": int(sum(counts)),
        "sum": sum(middle * count for middle, count in pairs),
        "sum_squares": sum(middle * middle * count for middle, count in pairs),
        "bucket_limits": [(place + 1) * width for place in range(len(counts))],
        "bucket_counts": counts,
    }


def hparam(value: Any) -> bool | float | int | str:
    """Convert a setting for the HPARAMS page: numbers and booleans stay, others become text."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
