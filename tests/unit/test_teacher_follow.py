"""A student on columns that are still being filled: the same losses, visible waits, clear ends."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.launch import metrics
from helpers.teacher_columns import targets
from helpers.tnr import tnr
from helpers.world import TINY_MODEL, make_world

from shards.columns import describe
from shards.stream import Stream
from trainer.cli.main import main
from trainer.config.validate import validate
from trainer.errors import ColumnError, ConfigError
from trainer.export.folder import load_export
from trainer.tasks.build import build
from trainer.teacher_server.fill import FillRequest, fill
from trainer.teacher_server.follow import Follower

FILLER = """
import sys, time
from pathlib import Path
pause, count, starts, *folders = sys.argv[1:]
while starts and len(Path(starts).read_text().splitlines()) < 2:
    time.sleep(0.05)
moved = 0
for cell in range(100):
    for folder in map(Path, folders):
        name = f"news-{cell:06d}"
        if not (folder / "away" / f"{name}.json").exists():
            continue
        if moved == int(count):
            print("stopped", flush=True)
            time.sleep(60)
        time.sleep(float(pause))
        for end in (".safetensors", ".json"):
            (folder / "away" / (name + end)).rename(folder / (name + end))
        moved += 1
"""
"""Commits cells that were taken away one by one, the data first, as a filling does."""


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path, num_articles=96)


@pytest.fixture
def teachers(world):
    """Two filled teachers."""
    made = [world.teacher("post_train", seed) for seed in range(2)]
    fill(made, FillRequest(articles=world.articles, impressions=None), lambda line: None)
    return made


def take_away(world, teachers):
    """Take all cells out of the columns; returns the columns' folders."""
    folders = []
    for teacher in teachers:
        request = FillRequest(articles=world.articles, impressions=None)
        folder = describe(*targets(load_export(teacher), request)[0]).folder
        (folder / "away").mkdir()
        for file in folder.glob("news-*"):
            file.rename(folder / "away" / file.name)
        folders.append(folder)
    return folders


def filler(folders, pause=0.15, count=1000, starts=""):
    """Start it; ``starts`` is a run's list of starts, whose second line it waits for."""
    words = [sys.executable, "-c", FILLER, str(pause), str(count), str(starts)]
    words += map(str, folders)
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


SETTINGS = {
    "data__negatives_from": "window",
    "data__window_shards": 1,
    "teachers__follow_timeout_s": 20.0,
}


def losses(world, teachers, **settings):
    """Losses of two epochs, and how many cells were there after the first batch."""
    torch.manual_seed(0)
    config = world.config("post_train_distill", teachers__models=teachers, **(SETTINGS | settings))
    built = build(config)
    folder = built.data.signals.columns[-1].folder
    found, there = [], None
    for _, rows in zip(range(24), Stream(built.data.order, 8), strict=False):
        made = built.data.collate(rows)
        there = there or len(list(folder.glob("news-*.json")))
        found.append(built.module(made.batch)["loss"])
    return torch.stack(found).detach().numpy(), there


def test_the_losses_are_those_of_a_run_that_started_when_all_was_there(world, teachers, capsys):
    expected, _ = losses(world, teachers)
    folders = take_away(world, teachers)
    with filler(folders) as process:
        found, there = losses(world, teachers, teachers__follow=True)
        assert process.wait(20) == 0
    assert there < 6, "training must have begun before all cells were there"
    np.testing.assert_array_equal(found, expected)
    said = capsys.readouterr().out
    assert "waiting: the cell of news-00000" in said and f"of teacher {teachers[0]}" in said
    assert "of 6 of its cells are there" in said


def test_a_killed_filler_is_an_error_that_names_what_is_missing(world, teachers):
    folders = take_away(world, teachers)
    with filler(folders, pause=0.05, count=5) as process:
        assert process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGKILL)
    with pytest.raises(ColumnError) as caught:
        losses(world, teachers, teachers__follow=True, teachers__follow_timeout_s=0.6)
    said = str(caught.value)
    assert "no cell of any teacher came for 0.6 s (teachers.follow_timeout_s)" in said
    assert "the filling has stopped" in said and "tnr teachers cache --stage 1" in said
    assert "3 of 6 of its cells" in said or "2 of 6 of its cells" in said


def test_a_filling_that_goes_on_too_slowly_ends_before_the_rank_is_taken_for_hung(world, teachers):
    folders = take_away(world, teachers[:1])
    request = FillRequest(articles=world.articles, impressions=None)
    target = targets(load_export(teachers[0]), request)[0]
    follower = Follower(timeout_s=5.0, longest_s=0.6, report=lambda line: None)
    with filler(folders, pause=0.25) as process:
        column = follower.open(*target, teachers[0], "tnr teachers cache")
        with pytest.raises(ColumnError, match=r"longer than 0.6 s .*run.hang_timeout_s"):
            column.gather("title", np.array([95]))
        assert process.wait(20) == 0
    assert column.gather("title", np.array([95])).shape == (1, 12)


def test_columns_that_nobody_has_begun(world, teachers):
    other = world.teacher("post_train", 9)
    with pytest.raises(ColumnError, match=r"teacher .*post_train-9 has not been started yet"):
        losses(world, [other], teachers__follow=True, teachers__follow_timeout_s=0.4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teachers__source": "live"}, "does not read any"),
        ({"data__articles": "https://there/articles"}, "set at a URL"),
        ({"teachers__follow_timeout_s": 1800.0}, "not below run.hang_timeout_s"),
        ({"teachers__follow_timeout_s": 0.0}, "expected more than 0"),
    ],
)
def test_settings_that_contradict_following(world, settings, said):
    with pytest.raises(ConfigError, match=said):
        validate(
            world.config(
                "post_train_distill", teachers__models=["t"], teachers__follow=True, **settings
            )
        )


def words(world, teachers, run, **settings):
    given = TINY_MODEL | {
        "data.articles": world.articles.path,
        "data.negatives_from": "window",
        "data.window_shards": 1,
        "teachers.follow": True,
        "teachers.follow_timeout_s": 20,
        "run.dir": run,
        "run.micro_batch": 4,
        "run.log_every": 1,
        "run.checkpoint_every": 2,
        "run.epochs": 2,
        "model.backbone.hidden_dropout": 0.0,  # its draws depend on the ranks
        "model.backbone.attention_dropout": 0.0,
    }
    pairs = [word for key, value in (given | settings).items() for word in (f"--{key}", value)]
    return ["train", "post_train_distill", *map(str, pairs), "--teachers.models", *teachers]


def test_a_run_that_was_left_waiting_is_resumed_and_two_ranks_wait_together(
    world, teachers, tmp_path, capsys
):
    assert main(words(world, teachers, tmp_path / "whole")) == 0
    expected = metrics(tmp_path / "whole")
    folders = take_away(world, teachers)
    with filler(folders, pause=0.0, count=10) as process:
        assert process.stdout.readline() == "stopped\n"
        process.kill()
    short = {"teachers.follow_timeout_s": 0.6}
    assert main(words(world, teachers, tmp_path / "cut", **short)) == 1
    assert "the filling has stopped" in capsys.readouterr().err
    steps = metrics(tmp_path / "cut")
    assert 0 < len(steps) < len(expected)
    with filler(folders, pause=1.0, starts=tmp_path / "cut" / "starts.jsonl") as process:
        done = tnr(*words(world, teachers, tmp_path / "cut"), processes=2)
        assert process.wait(20) == 0
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "rank 0: waiting: the cell of news-0000" in done.stdout
    found = metrics(tmp_path / "cut")
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=2e-5), step
