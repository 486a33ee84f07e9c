"""`tnr shards` as a person meets it: what is printed, exit codes, mistakes in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.corpora import articles, write_json_lines
from helpers.foreign_tars import json_bytes, write_tar

from shards.clicks import ClickColumn
from shards.columns import ColumnReader, ColumnWriter
from shards.errors import ColumnError
from shards.reader import ShardSet
from trainer.cli.main import main

TIME = "11/15/2019 8:55:22 PM"


@pytest.fixture(autouse=True)
def shards_alone(monkeypatch):
    """The command line with its other verbs left out: they are no matter here."""
    monkeypatch.setattr("trainer.cli.main.VERBS", (("shards.cli", "shards"),))


@pytest.fixture
def inputs(tmp_path):
    """An article file of which the third line is broken, and a click log."""
    rows = articles(9)
    write_json_lines(tmp_path / "a.jsonl", [*rows[:2], b"{", *rows[2:]])
    lines = [f"{n}\tU{n % 3}\t{TIME}\tN1 N2\tN3-0 N4-1" for n in range(6)]
    (tmp_path / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(capsys, *words):
    code = main(["shards", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def build_both(capsys, folder):
    run(capsys, "build", "--articles", folder / "a.jsonl", "--out", folder / "news")
    given = ["--clicks", folder / "behaviors.tsv", "--article-set", folder / "news"]
    return run(capsys, "build", *given, "--out", folder / "log")


@pytest.mark.parametrize("name", ["b.jsonl", "b.csv"])
def test_articles_without_any_body_name_the_fields_that_are_unused(capsys, tmp_path, name):
    rows = [{"id": f"N{n}", "title": f"T{n}", "text": "B", "place": "P"} for n in range(4)]
    if name == "b.csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    else:
        write_json_lines(tmp_path / name, rows)
    words = ["build", "--articles", tmp_path / name, "--out", tmp_path / "news"]
    said = "no article has a body; say which field to use with --body-field"
    code, out, _ = run(capsys, *words)
    assert code == 0 and said in out and "(unused: text, place)" in out
    code, out, _ = run(capsys, *words)  # built before
    assert code == 0 and said in out
    code, out, _ = run(capsys, *words, "--body-field", "text", "--force")
    assert code == 0 and said not in out


def test_a_few_rows_of_another_encoding_come_with_the_remedy(capsys, tmp_path):
    write_json_lines(tmp_path / "a.jsonl", [*articles(9), b'{"id": "x", "title": "caf\xe9"}'])
    code, out, _ = run(capsys, "build", "--articles", tmp_path / "a.jsonl", "--out", tmp_path / "n")
    assert code == 0 and "refused: bad UTF-8 1" in out and "note: expected UTF-8; " in out


def test_a_log_without_labels_is_named_as_one(capsys, inputs):
    _, out, _ = build_both(capsys, inputs)
    assert "has no labels" not in out
    log = inputs / "behaviors.tsv"
    log.write_text(log.read_text().replace("-0", "").replace("-1", ""))
    given = ["--clicks", log, "--article-set", inputs / "news", "--out", inputs / "test"]
    code, out, _ = run(capsys, "build", *given)
    assert code == 0 and "note: the log has no labels (-1 clicked, -0 not): tnr predict" in out


def test_build_says_what_was_built_and_refused(capsys, inputs):
    words = ["build", "--articles", inputs / "a.jsonl", "--out", inputs / "news"]
    code, out, _ = run(capsys, *words, "--samples-per-shard", 4)
    assert code == 0
    assert "9 articles in 3 shards" in out
    assert "refused: bad JSON 1 (listed in " in out
    code, out, _ = run(capsys, *words, "--samples-per-shard", 4)
    assert code == 0
    assert "is already built" in out
    code, _, err = run(capsys, *words)
    assert code == 1
    assert err.count("\n") == 1
    assert "--force" in err
    assert run(capsys, *words, "--force")[0] == 0
    assert ShardSet.open(inputs / "news").num_shards == 1


def test_options_of_an_article_build(capsys, inputs):
    rows = [*articles(5), articles(1)[0] | {"id": "again"}, {"id": "x", "title": "a\u200bb"}]
    write_json_lines(inputs / "b.jsonl", rows)
    words = ["build", "--articles", inputs / "b.jsonl", "--out", inputs / "b", "--processes", 2]
    code, out, _ = run(capsys, *words, "--near-duplicates")
    assert code == 0
    assert "6 articles in 1 shards" in out
    assert "duplicate content 1" in out
    assert "normalised 1, normalised controls 1" in out
    code, out, _ = run(capsys, *words, "--force", "--keep-duplicates", "--no-normalise")
    assert code == 0
    assert "7 articles in 1 shards" in out
    assert "duplicate" not in out
    assert ShardSet.open(inputs / "b").sample(6)["title"] == "a\u200bb"


def test_clicks_verify_stats_show(capsys, inputs):
    code, out, _ = build_both(capsys, inputs)
    assert code == 0
    assert "6 impressions in 1 shards" in out
    code, out, _ = run(capsys, "verify", inputs / "news", inputs / "log")
    assert (code, out.count("all intact")) == (0, 2)

    code, out, _ = run(capsys, "stats", inputs / "log")
    assert code == 0
    assert "users                   3" in out
    assert "labelled                yes" in out
    code, out, _ = run(capsys, "stats", inputs / "news", "--json")
    stats = json.loads(out)
    words = [len(article["body"].split()) for article in articles(9)]
    assert stats["lengths"]["body words"]["mean"] == pytest.approx(sum(words) / 9)
    assert stats["categories"] == {"news": 3, "sports": 3, "finance": 3}
    assert stats["refused"] == {"bad JSON": 1}

    code, out, _ = run(capsys, "show", inputs / "news", 4)
    assert json.loads(out) == articles(9)[4]
    code, out, _ = run(capsys, "show", inputs / "log", 0, "--articles", inputs / "news")
    assert json.loads(out)["history"] == ["Title “1” of the day", "Title “2” of the day"]


def test_the_repair_of_a_click_column_leaves_the_other_columns(capsys, inputs):
    build_both(capsys, inputs)
    log = ShardSet.open(inputs / "log")
    ColumnWriter(log, "teacher-clicks", {}).write(0, {"x": np.zeros(6)})
    (record,) = log.columns_dir.glob("clicks-*/*-000000.json")
    record.unlink()
    with pytest.raises(ColumnError) as caught:
        ClickColumn.open(log)
    _, _, *words = str(caught.value).split("run `")[1].rstrip("`").split()
    known = {"LOG": inputs / "behaviors.tsv", "SET": inputs / "news"}
    assert run(capsys, *(known.get(word, word) for word in words))[0] == 0
    assert ClickColumn.open(log).num_impressions == 6
    assert ColumnReader.open(log, "teacher-clicks").num_rows == 6


def test_the_articles_of_a_log_may_lie_elsewhere(capsys, inputs, monkeypatch):
    build_both(capsys, inputs)
    monkeypatch.setenv("TNR_CACHE", str(inputs / "cache"))
    given = ["--clicks", inputs / "behaviors.tsv", "--article-set", (inputs / "news").as_uri()]
    code, _, err = run(capsys, "build", *given, "--out", inputs / "other")
    assert (code, err) == (0, "")
    assert ShardSet.open(inputs / "other").fingerprint == ShardSet.open(inputs / "log").fingerprint


def test_verify_fails_on_damage_and_index_mends_an_index(capsys, inputs):
    build_both(capsys, inputs)
    index = inputs / "news" / "news-000000.idx"
    index.write_bytes(index.read_bytes()[:-16] + bytes(16))
    code, out, err = run(capsys, "verify", inputs / "news", inputs / "log")
    assert code == 1
    assert "news-000000.idx" in err
    assert f"{inputs / 'log'}: 1 shards, 6 samples, all intact" in out
    code, out, _ = run(capsys, "index", inputs / "news")
    assert (code, "wrote news-000000.idx" in out) == (0, True)
    assert run(capsys, "verify", inputs / "news")[0] == 0
    assert "all indexes fit" in run(capsys, "index", inputs / "news")[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("build --articles missing.jsonl --out x", 1, "missing.jsonl does not exist"),
        (
            "build --articles a.jsonl --out x --title-field headline",
            1,
            "no row has the field 'headline'",
        ),
        ("build --articles a.jsonl --out x --body-field a..b", 2, "--body-field 'a..b'"),
        ("build --articles a.jsonl --out x --article-set news", 2, "belongs to --clicks"),
        ("build --clicks behaviors.tsv --out x", 2, "needs --article-set"),
        ("build --clicks behaviors.tsv --article-set news --out x --id-field i", 2, "--id-field"),
        ("build --clicks behaviors.tsv --article-set news --out x --bodies b", 2, "--bodies"),
        (
            "build --clicks behaviors.tsv --article-set news --out x --processes 0",
            2,
            "--processes is",
        ),
        ("build --clicks behaviors.tsv --article-set news --out x --no-normalise", 2, "--no-norm"),
        ("build --articles a.jsonl --out x --processes 0", 2, "--processes is 0; expected 1"),
        ("build --clicks behaviors.tsv --article-set nothing --out x", 1, "no such folder"),
        ("build --clicks nothing.tsv --article-set news --out x", 1, "does not exist"),
        ("stats nothing", 1, "no such folder"),
        ("verify .", 1, "not a shard set"),
        ("index .", 1, "neither a shard set nor a folder of tars"),
        ("show news 9", 2, "expected a row from 0 to 8"),
        ("show news 0 --articles news", 2, "is for impressions"),
        ("show log 0 --articles log", 1, "expected a set of articles"),
        ("show news", 2, "either ROW or --id"),
        ("show news 1 --id N1", 2, "either ROW or --id"),
        ("show news --id N99", 2, "no sample with the id 'N99'"),
        ("stats news --window-shards 3", 2, "needs --order"),
        ("stats news --order --global-batch 0", 2, "expected at least 1"),
    ],
)
def test_mistakes_are_one_clear_line(capsys, inputs, monkeypatch, words, code, message):
    build_both(capsys, inputs)
    monkeypatch.chdir(inputs)
    found, _, err = run(capsys, *words.split())
    assert found == code
    assert err.startswith("tnr: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (inputs / "x" / "manifest.json").exists()


def test_the_command_line_is_set_up_without_heavy_imports():
    program = (
        "import argparse, sys, shards.cli\n"
        "shards.cli.register(argparse.ArgumentParser().add_subparsers())\n"
        "heavy = {'torch', 'transformers', 'webdataset', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tars_made_elsewhere_are_indexed(capsys, tmp_path):
    rows = [{**row, "headline": row["title"]} for row in articles(5)]
    for row in rows:
        del row["title"]
    members = [(f"k{n}.json", json_bytes(row)) for n, row in enumerate(rows)]
    write_tar(tmp_path / "tars" / "x.tar", [*members, ("k5.json", b"{"), ("k5.jpg", b"")])
    code, out, err = run(capsys, "index", tmp_path / "tars", "--out", tmp_path / "set")
    assert (code, err) == (0, "")
    assert "5 articles in 1 shards" in out
    assert "json: members *.json" in out and "title: field headline" in out
    assert "other_members: 1" in out and "refused, bad JSON: 1" in out
    assert str(tmp_path / "set" / "refused.jsonl") in out
    assert run(capsys, "index", tmp_path / "set")[1].endswith("all indexes fit\n")
    code, _, err = run(capsys, "index", tmp_path / "set", "--title-field", "headline")
    assert code == 2 and "give --force" in err
    assert run(capsys, "verify", tmp_path / "set")[0] == 0
    assert run(capsys, "stats", tmp_path / "set")[0] == 0
    code, out, _ = run(capsys, "show", tmp_path / "set", "3")
    assert code == 0 and "N3" in out
    code, _, err = run(capsys, "index", tmp_path / "tars", "--member", "title")
    assert code == 2 and "expected FIELD=SUFFIX" in err
