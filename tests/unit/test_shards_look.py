"""`tnr shards stats` and `show`: lengths, duplicates, suggestions, pictures, tokens, orders."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from helpers.sets import article_texts, make_articles, make_impressions, make_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.lengths import Lengths
from shards.stats import compute_stats
from shards.tokenizer import load_tokenizer
from trainer.cli.main import main

samples = st.lists(st.integers(0, 60), min_size=1, max_size=80)


@pytest.fixture(autouse=True)
def shards_alone(monkeypatch):
    monkeypatch.setattr("trainer.cli.main.VERBS", (("shards.cli", "shards"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("look")


@pytest.fixture(scope="module")
def news(folder):
    """50 articles, of which the last three repeat a title, a body, and both."""
    texts = [article_texts(row) for row in range(47)]
    texts += [(texts[0][0], "Another body."), ("Another title", texts[1][1]), texts[2]]
    articles = make_articles(folder / "news", texts=texts)
    make_tokens(articles, folder / "tokenizer", title_tokens=8, body_tokens=20)
    return articles


def run(capsys, *words):
    code = main(["shards", *map(str, words)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


@settings(deadline=None, max_examples=100)
@given(lengths=samples, share=st.floats(0, 1), limit=st.integers(0, 70))
def test_lengths_are_those_of_numpy(lengths, share, limit):
    array = np.array(lengths)
    counted = Lengths.of(array)
    assert (counted.num, counted.total, counted.max) == (len(lengths), sum(lengths), max(lengths))
    assert counted.percentile(share) == pytest.approx(np.percentile(array, 100 * share))
    assert counted.whole(limit) == pytest.approx((array <= limit).mean())
    if sum(lengths):
        assert counted.kept(limit) == pytest.approx(np.minimum(array, limit).sum() / sum(lengths))


@settings(deadline=None, max_examples=100)
@given(lengths=samples, share=st.sampled_from([0.5, 0.8, 0.95, 0.99, 1.0]))
def test_suggested_limits_are_the_smallest_that_keep_so_much(lengths, share):
    counted = Lengths.of(np.array(lengths))
    limit = counted.limit_for_whole(share)
    assert counted.whole(limit) >= share - 1e-12
    assert counted.whole(limit - 1) < share
    if counted.total:
        limit = counted.limit_for_kept(share)
        assert counted.kept(limit) >= share
        assert limit == 0 or counted.kept(limit - 1) < share


@given(lengths=samples)
def test_histogram_counts_every_sample_once_in_bins_side_by_side(lengths):
    rows = Lengths.of(np.array(lengths)).histogram()
    assert sum(count for *_, count in rows) == len(lengths)
    assert all(first[1] + 1 == second[0] for first, second in pairwise(rows))
    assert rows[0][0] == min(lengths)
    assert rows[-1][1] >= max(lengths)
    assert len(Lengths.of(np.array(lengths)).bars()) == len(rows)


def test_stats_count_fields_duplicates_and_tokens(news, capsys):
    stats = compute_stats(news)
    assert stats.duplicates == {"same title and body": 1, "same title": 2, "same body": 2}
    assert stats.fields["body"] == sum(bool(article_texts(row)[1]) for row in range(47)) + 3
    assert stats.limits == {"title tokens": 8, "body tokens": 20}
    assert stats.lengths["title tokens"].max == 8
    out = run(capsys, "stats", news.path)
    assert "same title and body     1 (2%)" in out
    assert re.search(r"at which the column cuts: longer text", out)
    assert re.search(
        r"title tokens \(data.max_title_tokens\)\n    leave whole   over 8 for 95%", out
    )
    assert out.count("█") > 20
    told = json.loads(run(capsys, "stats", news.path, "--json"))
    assert told["duplicates"]["same body"] == 2
    assert told["lengths"]["title words"]["whole_at"].keys() == {"95%", "99%"}


def test_stats_of_a_log_suggest_a_history_length(news, folder, capsys):
    log = make_impressions(folder / "log", news)
    out = run(capsys, "stats", log.path)
    assert "history (data.history_length)" in out
    assert "candidates\n" in out


@pytest.mark.parametrize("kind", ["news", "log", "constant"])
def test_stats_are_drawn(news, folder, tmp_path, capsys, kind):
    if kind == "log":
        target = make_impressions(folder / "drawn", news).path
    elif kind == "constant":
        target = make_articles(tmp_path / "same", texts=[("Title", "Body")] * 3).path
    else:
        target = news.path
    run(capsys, "stats", target, "--plot", tmp_path / "sub" / "s.png")
    data = (tmp_path / "sub" / "s.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5_000


def test_names_of_categories_stay_on_their_lines_and_are_no_formulas(tmp_path, capsys):
    rows = [
        {"id": f"N{n}", "title": f"Title {n}", "body": "A body", "category": "a\n\x1b[2J $\\frac{$"}
        for n in range(3)
    ]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = tmp_path / "set $\\frac{$"
    run(capsys, "build", "--articles", tmp_path / "news.jsonl", "--out", name, "--no-normalise")
    out = run(capsys, "stats", name, "--plot", tmp_path / "s.png")
    assert re.search(r"^  a\\n\\x1b\[2J \$\\frac\{\$ +3$", out, re.MULTILINE)
    assert "\x1b" not in out and (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_one_line(news, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert (
        main(["shards", "stats", str(news.path), "--plot", str(tmp_path / "file" / "x.png")]) == 2
    )
    assert re.search(r"tnr: error: --plot .* cannot be written", capsys.readouterr().err)


def test_order_of_a_set_by_window(news, folder, capsys):
    out = run(capsys, "stats", news.path, "--order")
    rows = re.findall(r"^ +(\d+) +\d+ .*%", out, flags=re.MULTILINE)
    assert rows == ["1", "2", "4"]
    (one,) = json.loads(run(capsys, "stats", news.path, "--order", "--window-shards", 3, "--json"))
    assert (one["window_shards"], one["units"], one["global_batch"]) == (3, 50, 32)


def test_order_of_a_click_log_says_what_blocks_of_a_users_clicks_share(news, folder, capsys):
    log = make_impressions(folder / "ordered", news, 200)
    out = run(capsys, "stats", log.path, "--order", "--ranks", 2)
    assert " clicks in 13 shards" in out
    rows = re.findall(r"^ +(\d+) +([18]) +[\d.]+% +([\d.]+) +\d+ +(\d+) +\d+%$", out, flags=re.M)
    assert [(window, block) for window, block, *_ in rows][-2:] == [("13", "1"), ("13", "8")]
    (_, _, users, titles), (_, _, fewer_users, fewer_titles) = rows[-2:]
    assert float(fewer_users) < float(users) and int(fewer_titles) < int(titles)
    words = ("--order", "--window-shards", 13, "--user-block", 8, "--json")
    (one,) = json.loads(run(capsys, "stats", log.path, *words))
    assert (one["user_block"], one["titles"]["micro_batch"], one["titles"]["ranks"]) == (8, 32, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--user-block", "0"], "--user-block is 0"),
        (["--ranks", "5"], "cannot be shared by --ranks 5"),
    ],
)
def test_orders_of_clicks_that_cannot_be(news, folder, capsys, words, said):
    log = make_impressions(folder / f"log{len(said)}", news)
    assert main(["shards", "stats", str(log.path), "--order", *words]) == 2
    assert said in capsys.readouterr().err
    if words[0] == "--user-block":
        assert main(["shards", "stats", str(news.path), "--order", "--user-block", "2"]) == 2
        assert "holds articles" in capsys.readouterr().err


def test_show_an_article_by_id_with_its_tokens_and_what_is_cut(news, folder, capsys):
    row = max(range(40), key=lambda row: len(article_texts(row)[0].split()))
    out = run(capsys, "show", news.path, "--id", f"N{row}")
    sample, end = json.JSONDecoder().raw_decode(out)
    assert sample == news.sample(row)
    tokenizer = load_tokenizer(folder / "tokenizer")
    ids = tokenizer(sample["title"])["input_ids"]
    assert len(ids) > 8
    assert f"title: 8 tokens of at most 8, {len(ids) - 8} more are cut" in out
    shown = re.search(r"ids +([\d ]+)", out[end:])
    assert shown is not None
    assert shown[1].split() == [str(i) for i in [*ids[:7], ids[-1]]]
    cut = re.search(r"cut +(\d+) characters: (.*)", out[end:])
    assert cut is not None
    assert sample["title"].endswith(cut[2]) and len(cut[2]) <= int(cut[1])
    assert run(capsys, "show", news.path, row, "--no-tokens") == out[: end + 1]


def test_show_tells_alike_ids_apart(tmp_path, capsys):
    articles = make_articles(
        tmp_path / "a", texts=[("N2 and N1", 'Body "N2" here'), ("b", "N2"), ("c", "d")]
    )
    shown = run(capsys, "show", articles.path, "--id", "N2")
    assert json.loads(shown)["title"] == "c"
