"""Lists for a person to look at: against the scores of evaluation, and what they say."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.sets import make_articles, make_impressions, make_tokens
from helpers.world import TinyWorld, make_world
from safetensors import safe_open
from safetensors.numpy import save

from shards.clicks import ClickColumn
from shards.errors import DamageError, DataError, UsageError
from shards.tokenize import tokenize_set
from shards.writer import ShardWriter
from trainer.cli import recommend as recommend_cli
from trainer.errors import ModelError
from trainer.evaluate.encode import encode_articles
from trainer.evaluate.recommend import Recommendations, Recommended
from trainer.evaluate.scoring import score_impressions
from trainer.export.folder import load_export


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def export(world: TinyWorld) -> str:
    return world.teacher("finetune", 1)


def command(world: TinyWorld, export: str, *words: str) -> int:
    parser = argparse.ArgumentParser()
    recommend_cli.register(parser.add_subparsers())
    sets = ["--articles", str(world.articles.path), "--device", "cpu"]
    arguments = parser.parse_args(["recommend", export, *sets, *words])
    return arguments.run(arguments)


def test_texts_of_articles_can_not_command_a_terminal(capsys):
    article = {"id": "N1\n", "category": "a\x1b[2J", "title": "t\n| x\x1b]0;"}
    line = Recommended(rank=1, score=1.0, read=False, shown=False, clicked=False, **article)
    found = Recommendations(
        about="user \x1b of https://u:S3CRET@h/dev",
        history=[article],
        num_history_used=1,
        top=[line],
        num_ranked=1,
        num_read=0,
        num_damaged=0,
        clicked_ranks=[],
        all_equal=False,
    )
    cells = r"N1\n  a\x1b[2J  t\n| x\x1b]0;"
    assert recommend_cli._text(found, "m").splitlines() == [
        r"m for user \x1b of https://***@h/dev",
        "",
        "History of 1, oldest first:",
        f"  {cells}",
        "",
        "The best 1 of 1 articles:",
        f"   1     1.0000  {cells}",
    ]


def told(world: TinyWorld, export: str, capsys, *words: str) -> dict:
    assert command(world, export, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def evaluated(world: TinyWorld, export: str, history: list[int], candidates: list[int], tmp: Path):
    """Scores of candidates as `tnr evaluate` computes them."""
    sample = {
        "id": "1",
        "user": "U",
        "time": "2019-11-15T08:00:00",
        "history": history,
        "candidates": candidates,
        "clicks": [1] + [0] * (len(candidates) - 1),
    }
    log = make_impressions(
        tmp / f"log-{len(history)}-{len(candidates)}", world.articles, samples=[sample]
    )
    model = load_export(export).load_model()
    texts = world.tokens.view(("title", 10))
    news = encode_articles(model, texts, np.arange(world.articles.num_rows))
    return score_impressions(model, news, ClickColumn.open(log), history_length=5).scores


def test_a_history_of_ids_is_ranked_as_in_evaluation(
    world: TinyWorld, export: str, capsys, tmp_path
):
    history = [3, 17, 4, 25, 8, 30, 11]  # two more than the model reads
    rows = [row for row in range(40) if row not in history]
    scores = evaluated(world, export, history, rows, tmp_path)
    best = sorted(zip(-scores, rows, strict=True))[:6]
    ids = [f"N{row}" for row in history]
    found = told(world, export, capsys, "--history", *ids, "--top", "6")
    assert [line["id"] for line in found["top"]] == [f"N{row}" for _, row in best]
    assert [line["score"] for line in found["top"]] == pytest.approx(
        [-s for s, _ in best], abs=1e-5
    )
    assert [line["rank"] for line in found["top"]] == [1, 2, 3, 4, 5, 6]
    assert found["top"][0]["title"] == world.articles.sample(best[0][1])["title"]
    assert [one["id"] for one in found["history"]] == ids
    assert (found["num_ranked"], found["num_read"], found["num_history_used"]) == (33, 7, 5)
    assert not any(line["read"] or line["shown"] or line["clicked"] for line in found["top"])

    found = told(world, export, capsys, "--history", *ids, "--include-read", "--top", "99")
    assert {line["id"] for line in found["top"] if line["read"]} == set(ids)
    assert len(found["top"]) == 40


def test_no_history_is_the_cold_users_list(world: TinyWorld, export: str, capsys, tmp_path):
    found = told(world, export, capsys, "--top", "40")
    scores = evaluated(world, export, [], list(range(40)), tmp_path)
    by_id = {line["id"]: line["score"] for line in found["top"]}
    assert [by_id[f"N{row}"] for row in range(40)] == pytest.approx(list(scores), abs=1e-5)
    assert not found["all_equal"]
    assert command(world, export) == 0
    said = capsys.readouterr().out
    assert "No history: this is what the model recommends to a user without clicks." in said
    assert "The best 10 of 40 articles:" in said
    # A model of the released code knows nothing of such a user, and the list says so.
    learned = world.teacher("finetune", 2, **{"model.history_padding": "learned"})
    assert command(world, learned) == 0
    assert "All scores are equal" in capsys.readouterr().out


def test_an_impression_shows_what_was_clicked(world: TinyWorld, export: str, capsys, tmp_path):
    log = ["--clicks", str(world.impressions.path)]
    row = next(  # with a history that leaves slots empty
        n
        for n, s in enumerate(world.impressions)
        if sum(s["clicks"]) == 2 and 0 < len(s["history"]) < 5
    )
    sample = world.impressions.sample(row)
    found = told(
        world, export, capsys, *log, "--impression", str(row), "--from-impression", "--top", "99"
    )
    scores = evaluated(world, export, sample["history"], sample["candidates"], tmp_path)
    order = np.argsort(-scores)
    assert [line["id"] for line in found["top"]] == [f"N{sample['candidates'][n]}" for n in order]
    found_scores = [line["score"] for line in found["top"]]
    assert found_scores == pytest.approx(list(scores[order]), abs=1e-5)
    clicked = [bool(sample["clicks"][n]) for n in order]
    assert [line["clicked"] for line in found["top"]] == clicked
    assert found["clicked_ranks"] == [n + 1 for n, one in enumerate(clicked) if one]
    assert all(line["shown"] for line in found["top"])
    assert [one["id"] for one in found["history"]] == [f"N{one}" for one in sample["history"]]

    # Among all articles the same marks stand; what was read is gone.
    found = told(world, export, capsys, *log, "--impression", str(row), "--top", "99")
    shown = {line["id"] for line in found["top"] if line["shown"]}
    assert shown == {f"N{n}" for n in set(sample["candidates"]) - set(sample["history"])}
    assert command(world, export, *log, "--impression", str(row), "--from-impression") == 0
    said = capsys.readouterr().out
    assert f"user {sample['user']} in impression {sample['id']} (row {row})" in said
    ranks = "; ".join(str(n + 1) for n, one in enumerate(clicked) if one)
    assert f"Rank of what the user clicked in this impression: {ranks}" in said
    assert said.count("[clicked") == 2
    assert "[shown" not in said  # all of them were
    assert command(world, export, *log, "--impression", str(row), "--top", "40") == 0
    assert capsys.readouterr().out.count("[shown]") == len(shown) - 2


def test_a_user_is_taken_at_the_latest_impression(world: TinyWorld, export: str, capsys, tmp_path):
    base = {"candidates": [1, 2], "clicks": [1, 0]}
    samples = [
        {"id": "a", "user": "U101", "time": "2019-11-11T08:00:00", "history": [1]} | base,
        {"id": "b", "user": "U102", "time": "2019-11-13T08:00:00", "history": [2]} | base,
        {"id": "c", "user": "U101", "time": "2019-11-12T09:00:00", "history": [3]} | base,
        {"id": "d", "user": "U101", "time": "2019-11-12T08:00:00", "history": [4]} | base,
    ]
    log = make_impressions(tmp_path / "log", world.articles, samples=samples, samples_per_shard=2)
    words = ["--clicks", str(log.path), "--user"]
    found = told(world, export, capsys, *words, "U101")
    assert [one["id"] for one in found["history"]] == ["N3"]
    assert "impression c (row 2)" in found["about"]
    with pytest.raises(UsageError, match=r"has no user 'U103'; did you mean U10[12] or U10[12]\?"):
        command(world, export, *words, "U103")
    unlabelled = make_impressions(
        tmp_path / "test", world.articles, samples=samples, labelled=False
    )
    found = told(
        world, export, capsys, "--clicks", str(unlabelled.path), "--impression", "1", "--top", "99"
    )
    assert [line["id"] for line in found["top"] if line["shown"]] == ["N1"]  # N2 was read
    assert not any(line["clicked"] for line in found["top"])
    assert found["clicked_ranks"] == []


def test_another_set_can_be_ranked(world: TinyWorld, export: str, capsys, tmp_path):
    texts = [(sample["title"], "") for sample in world.articles.read(range(10, 20))]
    with ShardWriter(tmp_path / "fresh", "articles", samples_per_shard=4) as writer:
        for place, (title, body) in enumerate(texts):
            more = {"category": "sports"} if place == 3 else {}
            article_id = "N12" if place == 0 else f"F{place}"
            writer.add({"id": article_id, "title": title, "body": body} | more)
        fresh = writer.finish()
    with pytest.raises(ModelError, match="tnr shards tokenize"):
        command(world, export, "--candidates", str(fresh.path))
    tokenize_set(fresh, str(world.folder / "tokenizer"), title_tokens=12, body_tokens=40)
    words = ["--history", "N12", "N5", "--candidates", str(fresh.path), "--top", "99"]
    found = told(world, export, capsys, *words)
    same = told(world, export, capsys, "--history", "N12", "N5", "--top", "99", "--include-read")
    by_title = {line["title"]: line["score"] for line in same["top"]}
    assert (found["num_ranked"], found["num_read"]) == (9, 1)
    assert {line["id"] for line in found["top"]} == {f"F{n}" for n in range(1, 10)}
    for line in found["top"]:
        assert line["score"] == pytest.approx(by_title[line["title"]], abs=1e-5)
    assert [line["id"] for line in found["top"] if line["category"] == "sports"] == ["F3"]


def test_kept_vectors_give_the_same_list_without_encoding(
    world: TinyWorld, export: str, capsys, tmp_path, monkeypatch
):
    words = ["--history", "N1", "N2", "--top", "5"]
    kept = ["--vectors", str(tmp_path / "new" / "vectors.safetensors")]
    plain = told(world, export, capsys, *words)
    first = told(world, export, capsys, *words, *kept)
    encoded = []
    real = encode_articles

    def count(model, texts, rows, **options):
        encoded.append(len(rows))
        return real(model, texts, rows, **options)

    monkeypatch.setattr("trainer.evaluate.encode.encode_articles", count)
    again = told(world, export, capsys, *words, *kept)
    assert encoded == [2]  # the history alone
    for found in (first, again):
        assert [line["id"] for line in found["top"]] == [line["id"] for line in plain["top"]]
        scores = [line["score"] for line in plain["top"]]
        assert [line["score"] for line in found["top"]] == pytest.approx(scores, abs=1e-5)
    other = world.teacher("finetune", 3)
    with pytest.raises(DataError, match="vectors of other weights"):
        command(world, other, *words, *kept)
    with safe_open(kept[1], framework="numpy") as file:
        metadata, news_NE = file.metadata(), file.get_tensor("news")
    for wrong in (news_NE[:-1], news_NE[:, 1:], news_NE.astype(np.float64), news_NE * np.nan):
        Path(kept[1]).write_bytes(save({"news": np.ascontiguousarray(wrong)}, metadata))
        with pytest.raises(DamageError, match="remove it to make it again"):
            command(world, export, *words, *kept)
    Path(kept[1]).write_bytes(b"nothing")
    with pytest.raises(DataError, match="does not hold article vectors"):
        command(world, export, *words, *kept)


def test_a_damaged_article_is_not_ranked(world: TinyWorld, export: str, capsys, tmp_path):
    fresh = make_articles(tmp_path / "fresh", 8)
    shard = tmp_path / "fresh" / fresh.shards[0].name
    data = bytearray(shard.read_bytes())
    data[int(fresh.index(0)["offset"][3]) + 5] ^= 1
    shard.write_bytes(data)
    fresh = type(fresh).open(fresh.path)
    tokens = str(world.folder / "tokenizer")
    tokenize_set(fresh, tokens, title_tokens=12, body_tokens=40, skip_damaged=1)
    capsys.readouterr()
    words = ["--candidates", str(fresh.path), "--history", "N2", "--top", "99"]
    found = told(world, export, capsys, *words)
    assert {line["id"] for line in found["top"]} == {f"N{n}" for n in range(8)} - {"N2", "N3"}
    assert (found["num_damaged"], found["num_read"]) == (1, 1)
    assert command(world, export, *words) == 0
    said = capsys.readouterr().out
    assert "articles (left out: 1 read before, 1 damaged):" in said


def test_mistakes_are_named(world: TinyWorld, export: str, tmp_path):
    with pytest.raises(
        UsageError, match=r"no article with the id 'n12' among its 40; did you mean N12"
    ):
        command(world, export, "--history", "N3", "n12")
    with pytest.raises(UsageError, match=r"'qqq' among its 40$"):
        command(world, export, "--history", "qqq")
    log = ["--clicks", str(world.impressions.path)]
    with pytest.raises(UsageError, match="no impression 60; its rows are 0 to 59"):
        command(world, export, *log, "--impression", "60")
    with pytest.raises(UsageError, match="name it with --clicks"):
        command(world, export, "--user", "U1")
    with pytest.raises(UsageError, match="--impression ROW or --user ID"):
        command(world, export, *log)
    with pytest.raises(UsageError, match="--from-impression needs an impression"):
        command(world, export, "--from-impression")
    with pytest.raises(UsageError, match="--top is 0"):
        command(world, export, "--top", "0")
    with pytest.raises(UsageError, match="no articles are left to rank: 40 are in the history"):
        command(world, export, "--history", *(f"N{n}" for n in range(40)))
    with pytest.raises(ModelError, match="without a user encoder"):
        command(world, world.teacher("post_train", 4))
    others = make_articles(tmp_path / "others", 12)
    make_tokens(others, tmp_path / "tokenizer")
    strange = make_impressions(tmp_path / "log", others)
    with pytest.raises(DataError, match="refers to articles"):
        command(world, export, "--clicks", str(strange.path), "--impression", "0")
