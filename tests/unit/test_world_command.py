"""``tnr shards synthesize``: what it refuses, leaves alone, and takes up again."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

import shards.cli
from shards.errors import UsageError
from shards.world.settings import WorldSettings
from shards.world.synthesize import synthesize

SMALL = WorldSettings(
    articles=1500,
    users=300,
    train_impressions=3000,
    dev_impressions=1500,
    seed=3,
    body_words=60,
    history_mean=10,
    candidates_mean=12,
)
FILES = (
    "articles.jsonl",
    "train/news.tsv",
    "dev/news.tsv",
    "train/behaviors.tsv",
    "dev/behaviors.tsv",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


COMMAND = ["shards", "synthesize", "--articles", "200", "--users", "20", "--body-words", "30"]
COMMAND += ["--train-impressions", "30", "--dev-impressions", "20"]
COMMAND += ["--candidates-mean", "5", "--history-mean", "4"]


def run(*options: str) -> None:
    """Runs ``tnr shards synthesize`` as the command line does."""
    parser = argparse.ArgumentParser()
    shards.cli.register(parser.add_subparsers())
    args = parser.parse_args([*COMMAND, *options])
    args.run(args)


def test_running_again_does_nothing_and_other_options_are_refused(tmp_path, capsys):
    out = tmp_path / "w"
    run("--out", str(out))
    assert "best reachable" in capsys.readouterr().out
    before = {name: (out / name).stat().st_mtime_ns for name in (*FILES, "truth.json")}
    run("--out", str(out))
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    with pytest.raises(UsageError, match="--force"):
        run("--out", str(out), "--seed", "9")
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    run("--out", str(out), "--seed", "9", "--force")
    assert json.loads((out / "truth.json").read_text())["settings"]["seed"] == 9


def test_an_interrupted_attempt_is_taken_up_again(tmp_path, monkeypatch):
    settings = dataclasses.replace(SMALL, articles=300, train_impressions=50, dev_impressions=30)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    synthesize(settings, whole)
    with monkeypatch.context() as patched:
        patched.setattr(
            "shards.world.synthesize.draw_impressions",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            synthesize(settings, cut)
    assert (cut / "articles.jsonl").exists() and not (cut / "truth.json").exists()
    with pytest.raises(UsageError, match="already holds articles"):
        synthesize(dataclasses.replace(settings, seed=8), cut)
    synthesize(settings, cut)
    assert contents(cut) == contents(whole)
    assert sorted(p.name for p in cut.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_a_file_cut_short_makes_the_world_again(tmp_path):
    settings = dataclasses.replace(SMALL, articles=300, train_impressions=50, dev_impressions=30)
    synthesize(settings, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "dev/behaviors.tsv").write_bytes(before["dev/behaviors.tsv"][:-40])
    synthesize(settings, tmp_path)
    assert contents(tmp_path) == before


def test_foreign_files_are_not_overwritten(tmp_path):
    (tmp_path / "articles.jsonl").write_text("mine\n")
    with pytest.raises(UsageError, match=r"articles\.jsonl"):
        synthesize(SMALL, tmp_path)
    assert (tmp_path / "articles.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--articles", "5"),
        ("--title-words", "4"),
        ("--candidates-mean", "1"),
        ("--cold-share", "1.5"),
        ("--noise", "0"),
        ("--click-articles", "201"),
        ("--processes", "0"),
    ],
)
def test_bad_values_are_refused_by_name(tmp_path, option, value):
    with pytest.raises(UsageError, match=option):
        run("--out", str(tmp_path / "w"), option, value)
    assert not (tmp_path / "w").exists()


def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("--out", str(tmp_path / "w"), "--noise", "nan")
    assert "argument --noise: 'nan' is not a finite number" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
