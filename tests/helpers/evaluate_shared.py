"""Evaluate and predict a tiny world as several ranks, or as one; for tests.

The commands first, as they are; then the functions underneath in blocks of a few users, so that
every rank has something to score. ``spec.json`` has the folders.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from trainer.cli.main import main
from trainer.engine.distributed import leave
from trainer.evaluate.encode import article_batches
from trainer.evaluate.evaluate import EvaluateOptions, make_ready
from trainer.evaluate.pairs import ClickLog, open_click_log
from trainer.evaluate.scoring import group_by_history, score_blocks
from trainer.evaluate.sharded import Ranks, encode_shared, measure, score_all, start_ranks
from trainer.export.folder import load_export

SMALL = {"block_users": 4, "history_length": 5}


def run(export: str, articles: str, clicks: str, out: Path) -> None:
    """Leave everything that rank 0 got in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    sets = ["--articles", articles, "--clicks", clicks, "--batch-tokens", "64"]
    words = ["--speed-seconds", "0", "--train-clicks", clicks, "--out", str(out / "eval.json")]
    with start_ranks() as ranks:  # a process can join a group once
        assert main(["evaluate", export, *sets, *words]) == 0
        assert main(["predict", export, *sets, "--out", str(out / "prediction.zip")]) == 0
        in_small_blocks(export, open_click_log(articles, clicks), ranks, out)


def in_small_blocks(export: str, log: ClickLog, ranks: Ranks, out: Path) -> None:
    """What the commands call, in blocks of a few users."""
    options = EvaluateOptions(batch_tokens=64, speed_s=0.0, device="cpu")
    ready = make_ready(load_export(export), log, options, ranks)
    assert len(article_batches(ready.texts, ready.used, batch_tokens=64)) > 3
    metrics = measure(ready.model, ready.news_NE, log.clicks, ranks, **SMALL)
    scored = score_all(ready.model, ready.news_NE, log.clicks, ranks, **SMALL)
    groups = group_by_history(log.clicks, 5)
    share = (ranks.rank, ranks.world_size)
    blocks = score_blocks(ready.model, ready.news_NE, log.clicks, groups, share=share, **SMALL)
    tokens: list[int] = []
    encode_shared(
        ready.model, ready.texts, ready.used, ranks, batch_tokens=64, on_batch=tokens.append
    )
    np.savez(
        out / f"rank-{ranks.rank}.npz",
        own_impressions=np.concatenate([block.places for block in blocks]),
        own_tokens=sum(tokens),
        news=ready.news_NE,
        scores=np.zeros(0) if scored is None else scored.scores,
        **metrics.arrays(),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    spec = json.loads(Path(sys.argv[1]).read_text())
    run(spec["export"], spec["articles"], spec["clicks"], Path(spec["out"]))
    leave(0)
