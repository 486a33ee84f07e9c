"""A tiny recommender evaluated on tiny sets: against doing the same by hand, row by row."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sets import impression_samples, make_impressions
from helpers.world import TinyWorld, make_world

from shards.clicks import ClickColumn
from shards.errors import DataError, UsageError
from shards.reader import ShardSet
from shards.writer import ShardWriter
from trainer.cli import evaluate as evaluate_cli
from trainer.errors import ModelError
from trainer.evaluate.baselines import make_baseline
from trainer.evaluate.encode import encode_articles
from trainer.evaluate.evaluate import (
    EvaluateOptions,
    evaluate_baseline,
    evaluate_model,
    open_training_log,
    summary,
)
from trainer.evaluate.metrics import ranking_metrics
from trainer.evaluate.pairs import TrainingLog, open_click_log
from trainer.evaluate.scoring import encode_users, score_impressions
from trainer.evaluate.segments import (
    category_segments,
    cold_segments,
    history_segments,
    segments,
)
from trainer.export.folder import load_export

FAST = EvaluateOptions(speed_s=0.0, device="cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def recommender(world: TinyWorld) -> str:
    return world.teacher("finetune", 1)


def by_hand(world: TinyWorld, export: str):
    """Scores of all candidates, one article and one impression at a time."""
    model = load_export(export).load_model()
    vectors = []
    with torch.inference_mode():
        for row in range(world.articles.num_rows):
            ids, mask = world.tokens.batch("title", np.array([row]), 10)
            vectors.append(model.encode_news(torch.from_numpy(ids), torch.from_numpy(mask))[0])
        scores, labels, users = [], [], []
        for sample in world.impressions:
            history = sample["history"][-5:]
            slots = torch.zeros(1, 5, len(vectors[0]))
            mask = torch.zeros(1, 5, dtype=torch.bool)
            for place, row in enumerate(history):
                slots[0, 5 - len(history) + place] = vectors[row]
                mask[0, 5 - len(history) + place] = True
            user = model.encode_users(slots, mask)[0]
            users.append(user.numpy())
            scores.append([float(vectors[row] @ user) for row in sample["candidates"]])
            labels.append(sample["clicks"])
    return scores, labels, np.stack(users), torch.stack(vectors).numpy()


def test_encoding_in_batches_by_length_equals_one_by_one(world: TinyWorld, recommender: str):
    model = load_export(recommender).load_model()
    _, _, _, expected = by_hand(world, recommender)
    rows = np.random.default_rng(0).permutation(world.articles.num_rows)
    titles = world.tokens.view(("title", 10))
    for batch_tokens in (1, 40, 100_000):
        found = encode_articles(model, titles, rows, batch_tokens=batch_tokens, progress=True)
        np.testing.assert_allclose(found, expected[rows], rtol=1e-4, atol=1e-5)
    assert encode_articles(model, titles, rows[:0]).shape == (0, 12)


def test_batches_keep_within_the_token_budget(world: TinyWorld):
    seen = []

    class Spy(torch.nn.Module):
        config = argparse.Namespace(news_dim=2)

        def forward(self, ids, mask):
            seen.append((tuple(ids.shape), int(mask.sum())))
            return torch.zeros(len(ids), 2)

    rows = np.arange(world.articles.num_rows)
    encode_articles(Spy(), world.tokens.view(("body", 20)), rows, batch_tokens=64)
    assert all(n * length <= 64 for (n, length), _ in seen)
    assert sum(n for (n, _), _ in seen) == len(rows)
    assert [length for (_, length), _ in seen] == sorted((s[0][1] for s in seen), reverse=True)
    seen.clear()
    encode_articles(Spy(), world.tokens.view(("title", 10)), rows, batch_tokens=64, pad_to_max=True)
    assert {length for (_, length), _ in seen} == {10}


@pytest.mark.parametrize(
    ("since", "message"), [("friday", "--since is 'friday'"), ("2031-01-01", "none of the 60")]
)
def test_a_wrong_period_is_told_before_anything_is_computed(world: TinyWorld, since, message):
    options = EvaluateOptions(since=since, device="cpu")
    with pytest.raises((UsageError, DataError), match=message):
        evaluate_model("no-export", world.articles.path, world.impressions.path, options)


def test_what_a_model_keeps_from_an_evaluation_can_be_trained_on(world: TinyWorld):
    """Some families keep tables by length in their forward pass."""

    class Keeping(torch.nn.Module):
        config = argparse.Namespace(news_dim=2)

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))
            self.table = None

        def forward(self, ids, mask):
            if self.table is None:
                self.table = torch.arange(2.0) + 1
            return (self.table * self.scale).expand(len(ids), 2)

    model = Keeping()
    vectors = encode_articles(model, world.tokens.view(("title", 10)), np.arange(3))
    assert vectors.tolist() == [[1.0, 2.0]] * 3 and model.training
    model(torch.zeros(1, 1), None).sum().backward()
    assert model.scale.grad.tolist() == [1.0, 2.0]


def test_scores_users_and_metrics_equal_those_by_hand(world: TinyWorld, recommender: str):
    scores, labels, users, vectors = by_hand(world, recommender)
    model = load_export(recommender).load_model()
    clicks = ClickColumn.open(world.impressions)
    found = score_impressions(model, vectors, clicks, history_length=5)
    np.testing.assert_allclose(found.scores, np.concatenate(scores), rtol=1e-4, atol=1e-5)
    some = np.array([3, 0, 17])
    part = score_impressions(model, vectors, clicks, rows=some, history_length=5)
    wanted = np.concatenate([scores[row] for row in some])
    np.testing.assert_allclose(part.scores, wanted, rtol=1e-4, atol=1e-5)
    assert list(np.diff(part.offsets)) == [len(scores[row]) for row in some]
    history, mask = clicks.history(np.arange(60), 5)
    encoded = encode_users(model.eval(), torch.from_numpy(vectors), history, mask).detach().numpy()
    np.testing.assert_allclose(encoded, users, rtol=1e-4, atol=1e-5)

    record = evaluate_model(recommender, world.articles.path, world.impressions.path, FAST).record
    flat = np.concatenate([np.array(one) for one in labels])
    offsets = np.cumsum([0, *(len(one) for one in labels)])
    expected = ranking_metrics(np.concatenate(scores), flat, offsets)
    assert record["metrics"] == pytest.approx(expected.to_dict(), abs=1e-6)
    assert record["counts"]["impressions"] == expected.num_impressions
    assert record["layers"] == 2
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["name"] == "finetune-1"
    assert record["data"]["articles_fingerprint"] == world.articles.fingerprint
    json.dumps(record, allow_nan=False)


def test_speed_and_cold_segments_are_in_the_record(world: TinyWorld, recommender: str, capsys):
    options = EvaluateOptions(
        speed_s=0.01, device="cpu", train_clicks=str(world.impressions.path), name="tiny"
    )
    record = evaluate_model(
        recommender, world.articles.path, world.impressions.path, options
    ).record
    assert record["speed"]["articles_per_s"] > 0
    assert record["segments"]["cold"]["cold_candidates_share"] == 0.0
    assert record["segments"]["cold"]["clicked_all_seen"]["impressions"] == 60
    summary(record)
    said = capsys.readouterr().out
    assert f"AUC      {record['metrics']['auc']:.4f}" in said


def test_segments_by_history_and_by_news_seen_before(world: TinyWorld, tmp_path: Path):
    def sample(number: int, history: list[int], candidates: list[int]) -> dict:
        return {
            "id": str(number),
            "user": "U",
            "time": "2019-11-15T08:00:00",
            "history": history,
            "candidates": candidates,
            "clicks": [1] + [0] * (len(candidates) - 1),
        }

    train = make_impressions(
        tmp_path / "train", world.articles, samples=[sample(1, [0, 1], [2, 3])]
    )
    dev = make_impressions(
        tmp_path / "dev",
        world.articles,
        samples=[sample(1, [], [0, 9]), sample(2, [1] * 3, [8, 2]), sample(3, [1] * 30, [7, 8])],
    )
    clicks = ClickColumn.open(dev)
    scores = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    labels = np.array([1, 0, 1, 0, 1, 0])
    metrics = ranking_metrics(scores, labels, np.array([0, 2, 4, 6]))
    history = history_segments(metrics, clicks)
    assert {name: part["auc"] for name, part in history.items()} == {
        "0": 1.0,
        "1-5": 0.0,
        "21-50": 1.0,
    }
    cold = cold_segments(metrics, clicks, TrainingLog(ClickColumn.open(train), np.arange(1)), 40)
    assert cold["cold_candidates_share"] == pytest.approx(4 / 6)
    assert cold["clicked_all_seen"] == history["0"] | {"impressions": 1}
    assert cold["clicked_all_cold"]["impressions"] == 2
    assert cold["clicked_all_cold"]["auc"] == 0.5


def test_segments_by_category_and_hour(tmp_path: Path, monkeypatch):
    categories = ["news", "sports", "", "sports", "rare"]
    with ShardWriter(tmp_path / "articles", "articles", samples_per_shard=2) as writer:
        for row, category in enumerate(categories):
            article = {"id": f"N{row}", "title": "t", "body": ""}
            writer.add(article | ({"category": category} if category else {}))
        articles = writer.finish()

    def sample(time: str, clicked: list[int]) -> dict:
        labels = [int(row in clicked) for row in range(5)]
        shown = {"history": [], "candidates": list(range(5)), "clicks": labels}
        return {"id": "1", "user": "U", "time": time} | shown

    logged = [
        sample("2019-11-15T08:59:59", [0]),
        sample("2019-11-15T09:00:00", [1]),
        sample("2019-11-16T08:00:00", [1, 3]),  # two clicks of one category count once
        sample("", [0, 2]),
        sample("2019-11-15T23:00:00", [4]),
        sample("2019-11-15T23:00:00", [0, 1, 2, 3, 4]),  # nothing unclicked: counts nowhere
    ]
    make_impressions(tmp_path / "clicks", articles, samples=logged)
    log = open_click_log(articles.path, tmp_path / "clicks")
    labels = log.clicks.clicked(log.rows())
    scores = np.tile(np.arange(5.0), len(logged))
    metrics = ranking_metrics(scores, labels, np.arange(len(logged) + 1) * 5)
    found = segments(metrics, log, None)
    assert {name: part["impressions"] for name, part in found["hour"].items()} == {
        "08": 2,
        "09": 1,
        "23": 1,
        "unknown": 1,
    }
    assert found["hour"]["08"]["auc"] == pytest.approx((0 + 3 / 6) / 2)
    assert {name: part["impressions"] for name, part in found["category"].items()} == {
        "(none)": 1,
        "news": 2,
        "rare": 1,
        "sports": 2,
    }
    assert found["category"]["sports"]["auc"] == pytest.approx((1 / 4 + 3 / 6) / 2)
    assert found["category"]["rare"]["mrr"] == 1.0
    monkeypatch.setattr("trainer.evaluate.segments.MOST_CATEGORIES", 2)
    few = category_segments(metrics, log.clicks, articles)
    assert {name: part["impressions"] for name, part in few.items()} == {
        "news": 2,
        "sports": 2,
        "(other)": 2,
    }
    with (articles.path / articles.shards[2].name).open("r+b") as file:
        file.seek(520)
        file.write(b"####")  # of the last article, "rare"
    damaged = category_segments(metrics, log.clicks, ShardSet.open(articles.path))
    assert "rare" not in damaged


@pytest.mark.parametrize(("until", "num_before"), [(None, 60), ("2019-11-11T08:00:06", 2)])
def test_popularity_and_news_seen_are_those_of_the_training_period(
    world: TinyWorld, until: str | None, num_before: int
):
    samples = impression_samples(60, 40)
    before = [sample for sample in samples if until is None or sample["time"] < until]
    assert len(before) == num_before
    expected, seen = np.zeros(40), set()
    for sample in before:
        seen.update(sample["history"], sample["candidates"])
        for row, click in zip(sample["candidates"], sample["clicks"], strict=True):
            expected[row] += click
    options = EvaluateOptions(train_clicks=str(world.impressions.path), train_until=until)
    train = open_training_log(world.articles.path, options)
    found = make_baseline("popularity", 40, train=train)(np.arange(40))
    np.testing.assert_array_equal(found, expected)
    record = evaluate_baseline(
        "popularity", world.articles.path, world.impressions.path, options
    ).record
    shown = [row for sample in samples for row in sample["candidates"]]
    cold = sum(row not in seen for row in shown) / len(shown)
    assert record["segments"]["cold"]["cold_candidates_share"] == pytest.approx(cold)
    assert record["train_period"] == [None, until]
    if until is None:
        assert record["metrics"]["auc"] > 0.6  # it has seen the very clicks
    assert record["role"] == "baseline"


def test_random_baseline_follows_its_seed(world: TinyWorld):
    def auc(seed: int) -> float:
        sets = (world.articles.path, world.impressions.path)
        return evaluate_baseline("random", *sets, EvaluateOptions(seed=seed)).record["metrics"][
            "auc"
        ]

    assert auc(1) == auc(1) != auc(2)


def test_what_cannot_be_evaluated_says_why(world: TinyWorld, recommender: str, tmp_path: Path):
    encoder = world.teacher("post_train", 3)
    with pytest.raises(ModelError, match="without a user encoder"):
        evaluate_model(encoder, world.articles.path, world.impressions.path, FAST)
    unlabelled = make_impressions(tmp_path / "test", world.articles, labelled=False)
    with pytest.raises(DataError, match="no labels"):
        evaluate_model(recommender, world.articles.path, unlabelled.path, FAST)
    other = make_world(tmp_path / "other", num_articles=50)
    with pytest.raises(DataError, match="refers to articles"):
        open_click_log(other.articles.path, world.impressions.path)
    with pytest.raises(UsageError, match="--train-clicks"):
        evaluate_baseline("popularity", world.articles.path, world.impressions.path, FAST)
    with pytest.raises(UsageError, match="name it with --train-clicks"):
        open_training_log(world.articles.path, EvaluateOptions(train_since="2019-11-12"))
    late = EvaluateOptions(train_clicks=str(world.impressions.path), train_since="2020-01-01")
    with pytest.raises(DataError, match=r"--train-since.*none of the 60 impressions"):
        open_training_log(world.articles.path, late)
    with pytest.raises(ModelError, match="tnr shards tokenize"):
        evaluate_model(
            recommender,
            other.articles.path,
            make_impressions(tmp_path / "c", other.articles).path,
            FAST,
        )


def command(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    evaluate_cli.register(parser.add_subparsers())
    arguments = parser.parse_args(["evaluate", *words])
    return arguments.run(arguments)


def test_command_writes_the_record(world: TinyWorld, recommender: str, tmp_path: Path, capsys):
    sets = ["--articles", str(world.articles.path), "--clicks", str(world.impressions.path)]
    out = tmp_path / "new" / "evaluation.json"
    words = [recommender, *sets, "--out", str(out), "--speed-seconds", "0", "--role", "student"]
    train = ["--train-clicks", sets[-1], "--train-since", "2019-11-12", "--train-until"]
    assert command([*words, *train, "2019-11-14"]) == 0
    record = json.loads(out.read_text())
    assert record["role"] == "student"
    assert record["train_period"] == ["2019-11-12", "2019-11-14"]
    assert f"{record['metrics']['mrr']:.4f}" in capsys.readouterr().out
    with pytest.raises(UsageError, match="or --baseline, not both"):
        command([recommender, "--baseline", "random", *sets])
    with pytest.raises(UsageError, match="or --baseline, not both"):
        command(sets)
