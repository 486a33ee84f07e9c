"""Settings that may differ between a checkpoint and the run that resumes from it."""

from collections.abc import Collection
from typing import Any

from trainer.config.flat import flatten, to_dict
from trainer.config.schema import TrainConfig
from trainer.errors import CheckpointError

MAY_CHANGE = frozenset(
    {
        "run.dir",
        "run.max_steps",
        "run.epochs",
        "run.log_every",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "run.keep_every",
        "run.best_metric",
        "run.best_is",
        "run.export",
        "run.background_saves",
        "run.not_finite",
        "run.not_finite_budget",
        "run.hang_timeout_s",
        "run.profile_steps",
        "run.peak_tflops",
        "run.deepspeed",
        "run.micro_batch",
        "run.compile",
        "run.allow_emulated",
        "run.activation_checkpointing",
        "run.copies.rule",
        "run.copies.every",
        "run.copies.count",
        "run.copies.steps",
        # How batches are fetched and computed, not their content.
        "data.workers",
        "data.batch_tokens",
        "data.share_titles",
        # Data may have moved: their content is checked by fingerprint.
        "data.articles",
        "data.clicks",
        "data.check_columns",
        "data.cache_dir",
        "data.cache_gib",
        "data.fetch_ahead",
        "data.fetch_attempts",
        # When to validate, not on what; with a longer patience, a run that ended early continues.
        "validation.clicks",
        "validation.every",
        "validation.patience",
        "validation.min_delta",
        "teachers.follow",
        "teachers.follow_timeout_s",
    }
)
"""Settings that a resumed run may change; a change of any other setting makes another run."""


def check_same_run(
    stored_config: dict[str, Any],
    config: TrainConfig,
    stored_data: str,
    data: str,
    elsewhere: Collection[str] = (),
) -> None:
    """Refuse to resume a run with other settings or on other data.

    Args:
        stored_config: Nested settings of the checkpoint.
        config: Configuration of this run.
        stored_data: Fingerprint of the task data in the checkpoint.
        data: Fingerprint of this run's data.
        elsewhere: Settings of all tasks, by dotted name: older versions stored all settings for
            every run. Settings that this run's task does not read are skipped.

    Raises:
        CheckpointError: Settings or data differ; names every differing field with both values.
    """
    now = flatten(to_dict(config))
    stored = flatten(stored_config)
    read = {key: value for key, value in stored.items() if key in now or key not in elsewhere}
    # A setting that is newer than the checkpoint had its default.
    before = flatten(to_dict(type(config)())) | read
    differing = [
        f"{key} was {_plain(before.get(key))!r} and is now {_plain(now.get(key))!r}"
        for key in sorted(before.keys() | now.keys())
        if key not in MAY_CHANGE and _plain(before.get(key)) != _plain(now.get(key))
    ]
    if differing:
        raise CheckpointError(
            f"the run folder holds another run: {'; '.join(differing)}. Restore the settings, or "
            "choose another run.dir"
        )
    if stored_data != data:
        raise CheckpointError(
            f"the run folder holds a run on other data: {_differing(stored_data, data)}. Restore "
            "the data, or choose another run.dir"
        )


_WHAT = {
    "articles": "data.articles (its shards)",
    "clicks": "data.clicks (its shards)",
    "frozen_states": "model.frozen_states (the frozen weights, layers and texts of the column)",
    "tokens": "data.tokens (tokenizer and lengths of the token column)",
    "clicks_period": "data.clicks_since and data.clicks_until (the clicks that are trained on)",
    "validation": "validation.clicks (the impressions that are validated on)",
}


def _differing(stored: str, data: str) -> str:
    """Name the parts in which two data fingerprints (``name:hash name:hash``) differ."""
    before, now = (
        {n: h for n, _, h in (p.partition(":") for p in s.split())} for s in (stored, data)
    )
    parts = [
        f"{_WHAT.get(name, name)} had fingerprint {before.get(name)} and now has {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    return "; ".join(parts)


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as JSON returns them."""
    return list(value) if isinstance(value, tuple) else value
