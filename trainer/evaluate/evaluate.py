"""One evaluation: a model (or a baseline) on a labelled click log, as a record ready for JSON.

The record is what ``tnr report`` reads: name, role, seed, metrics, counts, speed, parameters,
layers, segments, and the fingerprints of the data.
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

from trainer.errors import DataError, ModelError, UsageError
from trainer.evaluate.metrics import Metrics, ranking_metrics
from trainer.evaluate.pairs import ClickLog, open_click_log
from trainer.evaluate.within import within

if TYPE_CHECKING:
    from torch import nn

    from trainer.evaluate.scoring import ImpressionScores
    from trainer.export.folder import Export

FORMAT = 1
ROLES = ("teacher", "student", "plain", "baseline", "other")
"""What a model is in a report: ``plain`` is a model finetuned on clicks alone, without teachers."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How a model is evaluated, and how the record is labelled."""

    name: str | None = None
    """Name in the report, which averages evaluations of one name. None: the run's folder name."""
    role: str = "other"
    """One of :data:`ROLES`."""
    seed: int = 0
    """Which repetition this is; also seeds the random baseline."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    precision: str = "fp32"
    """``fp32`` or ``bf16``."""
    batch_tokens: int = 16384
    """Tokens of a forward pass, padding included."""
    train_clicks: str | None = None
    """Training log: for the cold-news segments and the popularity baseline."""
    since: str | None = None
    """Measure the impressions from this date or time on (UTC, as the log's times are taken)."""
    until: str | None = None
    """Measure the impressions before this date or time."""
    speed_s: float = 1.0
    """Seconds to spend on measuring the encoding speed; 0 leaves it out."""
    progress: bool = False
    """Show progress on stderr."""


def evaluate_model(
    export: str | Path, articles: str | Path, clicks: str | Path, options: EvaluateOptions
) -> dict[str, Any]:
    """Encode the articles that a log names, score its impressions and measure the ranking.

    Args:
        export: Folder of an exported recommender.
        articles: Article set with a token column of the model's tokenizer.
        clicks: Labelled impression set over these articles.
        options: How, and under which name.

    Returns:
        The record; every value is a JSON value.

    Raises:
        ModelError: The export has no user encoder, or does not fit the tokens.
        DataError: The sets do not belong together, or have no labels.
    """
    from trainer.export.folder import load_export

    log = open_click_log(articles, clicks)
    labels, _ = log.labels()
    opened = load_export(export)
    scored, model, speed = score_log(opened, log, options)
    metrics = ranking_metrics(scored.scores, labels, scored.offsets)
    record = _record(options.name or _run_name(opened.folder), metrics, log, options)
    record |= {
        "export": str(opened.folder),
        "weights_sha256": opened.weights_sha256,
        "layers": _num_layers(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "speed": speed,
        "precision": options.precision,
    }
    return record


def evaluate_baseline(
    kind: str, articles: str | Path, clicks: str | Path, options: EvaluateOptions
) -> dict[str, Any]:
    """Measure a baseline that needs no model; the record has no layers, parameters or speed.

    Raises:
        UsageError: Unknown baseline, or popularity without ``train_clicks``.
        DataError: The sets do not belong together, or have no labels.
    """
    from trainer.evaluate.baselines import baseline_scores

    log = open_click_log(articles, clicks)
    labels, offsets = log.labels()
    candidates, _ = log.clicks.candidates(np.arange(log.clicks.num_impressions, dtype=np.int64))
    train = open_click_log(articles, options.train_clicks).clicks if options.train_clicks else None
    scores = baseline_scores(
        kind, candidates, log.articles.num_rows, seed=options.seed, train=train
    )
    metrics = ranking_metrics(scores, labels, offsets)
    record = _record(options.name or kind, metrics, log, options)
    return record | {"role": "baseline"}


def score_log(
    export: Export, log: ClickLog, options: EvaluateOptions
) -> tuple[ImpressionScores, nn.Module, dict[str, Any]]:
    """Scores of every candidate of a log by an exported recommender.

    Returns:
        The scores, the model, and what was measured on the way.

    Raises:
        ModelError: The export has no user encoder, or there is no token column for it.
    """
    from trainer.evaluate.encode import encode_articles, pick_device
    from trainer.evaluate.scoring import score_impressions

    if not export.is_recommender:
        raise ModelError(
            f"{export.folder} is a news encoder without a user encoder, so it cannot score "
            "candidates; finetune it on clicks first: tnr train finetune --model.init "
            f"{export.folder}"
        )
    info, device = export.info, pick_device(options.device)
    tokens = export.tokens(log.articles)
    texts = export.news_texts(tokens)
    model = export.load_model().to(device)  # type: ignore[arg-type]
    how: dict[str, Any] = {
        "pad_to_max": bool(info.get("pad_to_max", False)),
        "batch_tokens": options.batch_tokens,
        "device": device,
        "precision": options.precision,
    }
    used = log.used_articles(info["history_length"])
    damaged = int(np.isin(used, tokens.skipped_rows).sum())
    if damaged:
        print(
            f"{damaged:,} of {len(used):,} articles were damaged when they were tokenized, and"
            f" count as empty titles; {tokens.folder / 'skipped.jsonl'} names them",
            file=sys.stderr,
        )
    start = time.perf_counter()
    vectors = encode_articles(model, texts, used, progress=options.progress, **how)
    encode_s = time.perf_counter() - start
    news_NE = np.zeros((log.articles.num_rows, vectors.shape[1]), dtype=np.float32)
    news_NE[used] = vectors
    start = time.perf_counter()
    scored = score_impressions(
        model, news_NE, log.clicks, history_length=info["history_length"], device=device
    )
    speed = {
        "device": device,
        "articles_encoded": len(used),
        "articles_damaged": damaged,
        "encode_s": round(encode_s, 4),
        "score_s": round(time.perf_counter() - start, 4),
    }
    if options.speed_s > 0:
        from trainer.evaluate.speed import articles_per_second

        rate = articles_per_second(model, texts, used, budget_s=options.speed_s, **how)
        speed["articles_per_s"] = round(rate, 1)
    return scored, model, speed


def _record(name: str, metrics: Metrics, log: ClickLog, options: EvaluateOptions) -> dict[str, Any]:
    if options.role not in ROLES:
        raise UsageError(f"--role is {options.role!r}; there is {', '.join(ROLES)}")
    from trainer.evaluate.segments import cold_segments, history_segments

    metrics, outside = within(metrics, log.clicks, options.since, options.until)
    segments: dict[str, Any] = {"history": history_segments(metrics, log.clicks)}
    if options.train_clicks:
        train = open_click_log(log.articles.path, options.train_clicks).clicks
        segments["cold"] = cold_segments(metrics, log.clicks, train, log.articles.num_rows)
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
        "segments": segments,
        "data": log.describe(),
    }


def _run_name(folder: Path) -> str:
    return folder.parent.name if folder.name == "export" else folder.name


def _num_layers(model: nn.Module) -> int:
    encoder: Any = getattr(model, "news_encoder", model)
    return int(encoder.config.backbone.num_hidden_layers)


def summary(record: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """Print a record in a few lines: the four metrics to four decimals, counts and speed."""
    metrics, counts = record["metrics"], record["counts"]
    say(f"{record['name']}: {counts['impressions']:,} impressions, {counts['skipped']:,} skipped")
    for key, label in (("auc", "AUC"), ("mrr", "MRR"), ("ndcg5", "nDCG@5"), ("ndcg10", "nDCG@10")):
        say(f"  {label:<8} {metrics[key]:.4f}")
    if record.get("parameters"):
        say(f"  {record['layers']} layers, {record['parameters']:,} parameters")
    rate = record.get("speed", {}).get("articles_per_s")
    if rate and math.isfinite(rate):
        say(f"  {rate:,.0f} articles encoded a second on {record['speed']['device']}")
