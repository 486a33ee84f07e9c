"""Titles shared among ranks, as the data lay them out: every rank seen from one process.

That losses and gradients over real ranks are the same is in ``numerics/test_equality_table.py``.
"""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.world import TinyWorld, make_world

from shards import sharing
from shards.stream import Stream
from trainer.engine.callback import Run
from trainer.engine.opening import open_run
from trainer.tasks.build import build, open_data
from trainer.tasks.finetune.clicks import Clicks, score_clicks
from trainer.tasks.registry import open_sources
from trainer.tasks.texts import encode_texts

RANKS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("shared"), num_articles=60)


def batches(world: TinyWorld, **settings):
    """The first micro-batch of every rank."""
    config = world.config("finetune", run__global_batch=12, run__micro_batch=2, **settings)
    data = open_data(config, open_sources(config))
    streams = [Stream(data.order, 12, rank, RANKS) for rank in range(RANKS)]
    return data, [next(stream).split(2)[1] for stream in streams]


def test_shares_hold_the_titles_of_every_rank_each_once(world):
    own, rows = batches(world, data__pad_to_max=True)
    shared, _ = batches(world, data__pad_to_max=True, data__share_titles="all")
    per_rank = [own.collate(part).batch for part in rows]
    shares = [shared.collate(part).batch for part in rows]
    assert len({len(ids_of(share)) for share in shares}) == 1
    laid_out = np.concatenate([ids_of(share) for share in shares])
    distinct = np.unique(laid_out, axis=0)
    assert len(laid_out) - len(distinct) < RANKS
    assert len(laid_out) < sum(len(ids_of(batch)) for batch in per_rank)
    for alone, share in zip(per_rank, shares, strict=True):
        assert alone.news.shared is None
        np.testing.assert_array_equal(laid_out[share.news.shared], ids_of(alone))
        for name in ("history_index", "history_mask", "candidate_index"):
            np.testing.assert_array_equal(getattr(share, name), getattr(alone, name))


def ids_of(batch: Clicks) -> np.ndarray:
    (part,) = batch.news.parts
    return part.inputs.numpy()


def test_scores_are_those_of_ranks_that_encode_their_own(world, monkeypatch):
    """Sub-batches of like lengths, and vectors that the ranks hand to each other."""
    settings = {
        "data__batch_tokens": 40,
        "model__backbone__hidden_dropout": 0.0,
        "model__backbone__attention_dropout": 0.0,
    }
    own, rows = batches(world, **settings)
    shared, _ = batches(world, data__share_titles="all", **settings)
    torch.manual_seed(1)
    model = build(world.config("finetune", **settings)).module.model.eval()

    expected = [score_clicks(model, own.collate(part).batch) for part in rows]
    shares = [shared.collate(part).batch for part in rows]
    vectors = [
        encode_texts(model.encode_news, dataclasses.replace(share.news, shared=None))
        for share in shares
    ]
    monkeypatch.setattr("torch.distributed.nn.functional.all_gather", lambda vectors_SE: vectors)
    for share, wanted in zip(shares, expected, strict=True):
        for found, tensor in zip(score_clicks(model, share), wanted, strict=True):
            torch.testing.assert_close(found, tensor, rtol=1e-5, atol=1e-6)


def start_of(world: TinyWorld, data, folder: Path, ranks: int) -> dict:
    """What the first process of a run records when it starts."""
    sizes = {"run__global_batch": 12, "run__micro_batch": 2}
    config = world.config("finetune", run__dir=str(folder), **sizes)
    processes = SimpleNamespace(
        world_size=ranks,
        zero_stage=None,
        deepspeed=None,
        accumulation=2,
        device=torch.device("cpu"),
    )
    run = Run(config, processes, 5)
    open_run(run, data, fingerprint=data.fingerprint, notes=[], copy_steps=[])
    run.folder.close()
    return json.loads((folder / "starts.jsonl").read_text())


@pytest.mark.parametrize(("worth", "is_shared"), [(1.0, True), (0.05, False)])
def test_auto_shares_where_few_enough_titles_are_left(
    world, monkeypatch, tmp_path, capsys, worth, is_shared
):
    monkeypatch.setattr(sharing, "WORTH_SHARING", worth)
    data, rows = batches(world, data__share_titles="auto")
    recorded = start_of(world, data, tmp_path / "run", RANKS)["share_titles"]
    said = capsys.readouterr().out
    chosen = "all" if is_shared else "rank"
    assert f"data.share_titles auto is {chosen} (all where at most {100 * worth:.0f}%" in said
    assert (recorded["chosen"], recorded["ranks"]) == (chosen, RANKS)
    kept = recorded["distinct_over_ranks"] / (RANKS * recorded["most_distinct"])
    assert f"would have {100 * kept:.0f}% of them" in said
    assert "share_titles" not in start_of(world, data, tmp_path / "alone", 1)
    kept = data.sharing(2, 12, RANKS).kept_over_ranks
    assert 0.05 < kept < 1.0
    shares = [data.collate(part).batch.news.shared is not None for part in rows]
    assert shares == [is_shared] * RANKS


def test_one_rank_has_nobody_to_share_with(world):
    data, _ = batches(world, data__share_titles="all")
    assert data.collate(next(Stream(data.order, 12))).batch.news.shared is None
