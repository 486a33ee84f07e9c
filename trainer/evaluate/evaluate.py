"""Evaluation of a model or a baseline on a labelled click log, as a record for JSON.

``tnr report`` reads the record: name, role, seed, metrics, counts, speed, parameters, layers,
segments, and the fingerprints of the data.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.files import write_json_atomic
from shards.periods import check_any, parse_period, rows_inside
from trainer.errors import DataError, ModelError, UsageError
from trainer.evaluate.impressions import write_impressions
from trainer.evaluate.metrics import Metrics, impression_metrics
from trainer.evaluate.pairs import ClickLog, TrainingLog, log_parts, open_click_log
from trainer.evaluate.segments import segments
from trainer.evaluate.within import leave_out, outside_period

if TYPE_CHECKING:
    from torch import nn

    from shards.texts import TextView
    from trainer.evaluate.sharded import Ranks
    from trainer.export.folder import Export

FORMAT = 1
ROLES = ("teacher", "student", "plain", "baseline", "other")
"""Roles of a model in a report; ``plain`` is finetuned on clicks alone, without teachers."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Settings of an evaluation, and the labels of its record."""

    name: str | None = None
    """Name in the report, which averages evaluations of the same name; None uses the run's folder
    name."""
    role: str = "other"
    """One of :data:`ROLES`."""
    seed: int = 0
    """Number of the repetition; also seeds the random baseline."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    precision: str = "fp32"
    """``fp32`` or ``bf16``."""
    batch_tokens: int = 16384
    """Tokens per forward pass, padding included."""
    train_clicks: str | None = None
    """Training log, for the cold-news segments and the popularity baseline."""
    train_since: str | None = None
    """Start of the period of the training log (date or time)."""
    train_until: str | None = None
    """End of the period of the training log (date or time, exclusive)."""
    since: str | None = None
    """Measure impressions from this date or time on (UTC, as the log's times are taken)."""
    until: str | None = None
    """Measure impressions before this date or time (exclusive)."""
    speed_s: float = 1.0
    """Seconds to spend on measuring the encoding speed; 0 does not measure it."""
    progress: bool = False
    """Show progress on stderr."""


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation."""

    record: dict[str, Any]
    """Record for ``tnr report``; every value is a JSON value."""
    metrics: Metrics
    """Metrics, with the values of every impression."""
    log: ClickLog

    def write(self, path: Path) -> None:
        """Write the record, and the metrics of single impressions next to it."""
        users = self.log.clicks.user(self.log.rows())
        clicks = self.log.impressions.fingerprint
        named = write_impressions(path, self.metrics, users, clicks)
        write_json_atomic(path, self.record | named)


@dataclass(frozen=True)
class Ready:
    """A recommender with the vectors of all articles that a log names."""

    model: Any
    news_NE: np.ndarray
    """float32[N, E] by article row; zeros for articles that the log does not name."""
    history_length: int
    device: str
    speed: dict[str, Any]
    """Speed measured during encoding."""
    texts: TextView
    used: np.ndarray
    """int64, the encoded articles."""


def evaluate_model(
    export: str | Path,
    articles: str | Path,
    clicks: str | Path,
    options: EvaluateOptions,
    ranks: Ranks | None = None,
) -> Evaluation | None:
    """Encode the articles of a log, score its impressions and measure the ranking.

    Args:
        export: Folder of an exported recommender.
        articles: Article set with a token column of the model's tokenizer.
        clicks: Labelled impression set over these articles.
        options: Settings and labels of the evaluation.
        ranks: This process among those that evaluate together; None for a single process.

    Returns:
        The evaluation on rank 0, None on the others. Apart from times, its record does not depend
        on the number of ranks.

    Raises:
        UsageError: A bound of the period is not a date or time.
        ModelError: The export has no user encoder, or does not match the tokens.
        DataError: The sets do not belong together, have no labels, or have no impressions in the
            period.
    """
    from trainer.evaluate.sharded import Ranks, measure
    from trainer.export.folder import load_export

    ranks = ranks or Ranks()
    log = open_click_log(articles, clicks)
    log.check_labelled()
    outside_n = outside_period(log.clicks, options.since, options.until)
    train = open_training_log(articles, options)
    opened = load_export(export)
    ready = make_ready(opened, log, options, ranks)
    start = time.perf_counter()
    metrics = measure(
        ready.model,
        ready.news_NE,
        log.clicks,
        ranks,
        history_length=ready.history_length,
        device=ready.device,
        progress=options.progress,
    )
    speed = ready.speed | {"score_s": round(time.perf_counter() - start, 4)}
    if not ranks.is_main:
        return None
    if options.speed_s > 0:
        speed["articles_per_s"] = _articles_per_second(ready, opened, options)
    metrics = leave_out(metrics, outside_n)
    name = options.name or _run_name(opened.folder)
    record = make_record(name, metrics, log, options, train, int(outside_n.sum()))
    record |= {
        "export": str(opened.folder),
        "weights_sha256": opened.weights_sha256,
        "layers": _num_layers(ready.model),
        "parameters": sum(p.numel() for p in ready.model.parameters()),
        "speed": speed,
        "precision": options.precision,
    }
    return Evaluation(record, metrics, log)


def evaluate_baseline(
    kind: str, articles: str | Path, clicks: str | Path, options: EvaluateOptions
) -> Evaluation:
    """Measure a baseline without a model; its record has no layers, parameters or speed.

    Raises:
        UsageError: The baseline is unknown, or popularity lacks ``train_clicks``.
        DataError: The sets do not belong together, or have no labels.
    """
    from trainer.evaluate.baselines import make_baseline

    log = open_click_log(articles, clicks)
    log.check_labelled()
    outside_n = outside_period(log.clicks, options.since, options.until)
    train = open_training_log(articles, options)
    scores = make_baseline(kind, log.articles.num_rows, seed=options.seed, train=train)
    parts = [
        impression_metrics(scores(part.candidates), log.clicks.clicked(part.rows), part.offsets)
        for part in log_parts(log.clicks)
    ]
    metrics, outside = leave_out(Metrics.join(parts), outside_n), int(outside_n.sum())
    record = make_record(options.name or kind, metrics, log, options, train, outside)
    return Evaluation(record | {"role": "baseline"}, metrics, log)


def make_ready(export: Export, log: ClickLog, options: EvaluateOptions, ranks: Ranks) -> Ready:
    """Load a recommender and encode the articles of a log, all ranks together.

    Raises:
        ModelError: The export has no user encoder, or its token column is missing.
    """
    from trainer.evaluate.sharded import encode_shared
    from trainer.hardware import pick_device

    if not export.is_recommender:
        raise ModelError(
            f"{export.folder} is a news encoder without a user encoder, so it cannot score "
            "candidates; finetune it on clicks first: tnr train finetune --model.init "
            f"{export.folder}"
        )
    history_length = int(export.info["history_length"])
    device = pick_device(options.device, ranks.local_rank)
    tokens = export.tokens(log.articles)
    texts = export.news_texts(tokens)
    model = export.load_model().to(device)  # type: ignore[arg-type]
    used = log.used_articles(history_length)
    damaged = int(np.isin(used, tokens.skipped_rows).sum())
    if damaged and ranks.is_main:
        print(
            f"{damaged:,} of {len(used):,} articles were damaged when they were tokenized and "
            f"count as empty titles; {tokens.folder / 'skipped.jsonl'} names them",
            file=sys.stderr,
        )
    start = time.perf_counter()
    how = _how(export, options, device) | {"progress": options.progress}
    vectors = encode_shared(model, texts, used, ranks, **how)
    news_NE = np.zeros((log.articles.num_rows, vectors.shape[1]), dtype=np.float32)
    news_NE[used] = vectors
    speed = {
        "device": device,
        "ranks": ranks.world_size,
        "articles_encoded": len(used),
        "articles_damaged": damaged,
        "encode_s": round(time.perf_counter() - start, 4),
    }
    return Ready(model, news_NE, history_length, device, speed, texts, used)


def _how(export: Export, options: EvaluateOptions, device: str) -> dict[str, Any]:
    return {
        "pad_to_max": bool(export.info.get("pad_to_max", False)),
        "batch_tokens": options.batch_tokens,
        "device": device,
        "precision": options.precision,
    }


def _articles_per_second(ready: Ready, export: Export, options: EvaluateOptions) -> float:
    from trainer.evaluate.speed import articles_per_second

    how = _how(export, options, ready.device)
    rate = articles_per_second(
        ready.model, ready.texts, ready.used, budget_s=options.speed_s, **how
    )
    return round(rate, 1)


def open_training_log(articles: str | Path, options: EvaluateOptions) -> TrainingLog | None:
    """Open the training period of ``options.train_clicks``; None without a log.

    Raises:
        UsageError: A bound is not a date or time, the period is empty, or a bound is given without
            a log.
        DataError: The log is missing, belongs to other articles, or has no impressions in the
            period.
    """
    period = parse_period(options.train_since, options.train_until, "--train-")
    if options.train_clicks is None:
        if period.is_bounded:
            raise UsageError(
                "--train-since and --train-until need a training log: name it with --train-clicks"
            )
        return None
    clicks = open_click_log(articles, options.train_clicks).clicks
    rows = rows_inside(clicks, period)
    if period.is_bounded:
        what = f"{clicks.num_impressions:,} impressions"
        check_any(len(rows), clicks, period, "--train-", what)
    return TrainingLog(clicks, rows)


def make_record(
    name: str,
    metrics: Metrics,
    log: ClickLog,
    options: EvaluateOptions,
    train: TrainingLog | None = None,
    outside: int = 0,
) -> dict[str, Any]:
    """Make the record of an evaluation of a model or a baseline.

    Args:
        name: Name in reports.
        metrics: Metrics of all impressions of the log, in its order.
        log: The evaluated log.
        options: Settings and role of the evaluation.
        train: The training log, for the segments by news seen in training.
        outside: Number of impressions outside the measured period.

    Raises:
        UsageError: The role is unknown.
        DataError: No impression counts.
    """
    if options.role not in ROLES:
        raise UsageError(f"--role is {options.role!r}; expected one of {', '.join(ROLES)}")
    values = metrics.to_dict()
    if metrics.num_impressions == 0:
        raise DataError(
            f"{log.impressions.path}: none of its {metrics.num_skipped - outside} impressions has "
            "both a clicked and another candidate, so no metric is defined"
        )
    return {
        "format": FORMAT,
        "name": name,
        "role": options.role,
        "seed": options.seed,
        "metrics": values,
        "counts": {
            "impressions": metrics.num_impressions,
            "skipped": metrics.num_skipped - outside,
            "articles": log.articles.num_rows,
            "outside": outside,
        },
        "period": [options.since, options.until],
        "train_period": [options.train_since, options.train_until],
        "segments": segments(metrics, log, train),
        "data": log.describe(),
    }


def _run_name(folder: Path) -> str:
    return folder.parent.name if folder.name == "export" else folder.name


def _num_layers(model: nn.Module) -> int:
    encoder: Any = getattr(model, "news_encoder", model)
    return int(encoder.config.backbone.num_hidden_layers)


def summary(record: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """Print a record's metrics, to four decimals, with counts and speed."""
    metrics, counts = record["metrics"], record["counts"]
    say(f"{record['name']}: {counts['impressions']:,} impressions, {counts['skipped']:,} skipped")
    for key, label in (("auc", "AUC"), ("mrr", "MRR"), ("ndcg5", "nDCG@5"), ("ndcg10", "nDCG@10")):
        say(f"  {label:<8} {metrics[key]:.4f}")
    if record.get("parameters"):
        say(f"  {record['layers']} layers, {record['parameters']:,} parameters")
    rate = record.get("speed", {}).get("articles_per_s")
    if rate and math.isfinite(rate):
        say(f"  {rate:,.0f} articles encoded per second on {record['speed']['device']}")
