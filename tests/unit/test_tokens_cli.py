"""``tnr shards tokenize`` and ``train-tokenizer``, as a user calls them."""

import argparse

import pytest
from helpers.sets import make_articles

from shards.cli_tokens import register
from shards.errors import DamageError, UsageError
from shards.tokens import TokenColumn


def run(*words):
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    arguments = parser.parse_args([str(word) for word in words])
    return arguments.run(arguments)


def test_train_then_tokenize(tmp_path, capsys):
    articles = make_articles(tmp_path / "a", 30, 16)
    folder = tmp_path / "tokenizer"
    run("train-tokenizer", articles.path, "--out", folder, "--vocab-size", 1000)
    out = capsys.readouterr().out
    assert str(folder) in out and "fewer than the requested 1,000" in out
    run("tokenize", articles.path, "--tokenizer", folder, "--title-tokens", 9, "--body-tokens", 20)
    out = capsys.readouterr().out
    tokens = TokenColumn.open(articles)
    assert tokens.limits == {"title": 9, "body": 20}
    assert str(tokens.folder) in out
    assert "title:" in out and "limit of 9" in out and "in 30 articles" in out


def test_options_out_of_range(tmp_path, capsys):
    articles = make_articles(tmp_path / "a", 30, 16)
    run("train-tokenizer", articles.path, "--out", tmp_path / "t", "--vocab-size", 200)
    with pytest.raises(SystemExit):
        run("tokenize", articles.path, "--tokenizer", tmp_path / "t", "--processes", 0)
    assert "--processes: '0' is not a whole number from 1 to 4096" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--body-tokens is 1"):
        run("tokenize", articles.path, "--tokenizer", tmp_path / "t", "--body-tokens", 1)


def test_every_option_is_explained(capsys):
    for verb in ("tokenize", "train-tokenizer"):
        with pytest.raises(SystemExit) as caught:
            run(verb, "--help")
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert f"tnr shards {verb} data/articles" in out
        assert max(len(line) for line in out.splitlines()) <= 100


def test_damaged_articles_are_skipped_within_the_budget(tmp_path, capsys):
    articles = make_articles(tmp_path / "a", 30, 16)
    run("train-tokenizer", articles.path, "--out", tmp_path / "t", "--vocab-size", 200)
    with (articles.path / "news-000001.tar").open("r+b") as file:
        file.truncate(int(articles.index(1)[12]["offset"]))
    command = ["tokenize", articles.path, "--tokenizer", tmp_path / "t"]
    with pytest.raises(DamageError, match="the manifest says"):
        run(*command)
    with pytest.raises(DamageError, match="more than --skip-damaged 1 allows"):
        run(*command, "--skip-damaged", 1)
    capsys.readouterr()
    run(*command, "--skip-damaged", 2)
    said = capsys.readouterr()
    assert "2 damaged articles are skipped and left out of training" in said.out
    assert said.err.count("skipped damaged sample: news-000001.tar, offset ") == 2
    assert "(row 28): it ends before" in said.err and "(row 29): it ends before" in said.err
