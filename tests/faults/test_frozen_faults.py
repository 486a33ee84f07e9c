"""A run that fills the column of frozen states is killed, asked to stop, or not alone."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dying import die, run_child
from helpers.world import TINY_CLICKS, TinyWorld, make_world

from shards.column_check import verify_column_folders
from shards.columns import list_columns
from shards.files import read_json
from trainer.cli.main import main
from trainer.errors import EXIT_REQUEUE
from trainer.frozen import column, identity
from trainer.frozen.fill import StateFiller


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    return make_world(tmp_path)


def words(world: TinyWorld, run: str) -> list[str]:
    """A training run of two steps from the column, whose three cells are not there yet."""
    changes = {
        "data.articles": world.articles.path,
        "data.clicks": world.impressions.path,
        "run.dir": world.folder / run,
        "run.max_steps": 2,
        "model.frozen_states": "float16",
        "model.trainable_layers": 1,
    }
    given = TINY_CLICKS | changes
    return ["train", "finetune", *(str(w) for k, v in given.items() for w in (f"--{k}", v))]


def files(world: TinyWorld) -> dict[str, bytes]:
    """The files of the only column of frozen states."""
    (info,) = list_columns(world.articles, column.FROZEN)
    return {path.name: path.read_bytes() for path in info.folder.iterdir()}


def train_and_die(given: list[str], suffix: str) -> None:
    """Be gone when the second file with this suffix is to be renamed into its place."""
    real, seen = Path.replace, []

    def replace(self: Path, target: Any) -> Path:
        if Path(target).name.startswith("news-") and Path(target).suffix == suffix:
            seen.append(target)
            if len(seen) == 2:
                die()
        return real(self, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]
    main(given)


def train_to_the_end(given: list[str]) -> None:
    raise SystemExit(main(given))


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_killed_fill_goes_on_where_it_was(
    world: TinyWorld, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a cell's data, and between its data and its commit."""
    assert run_child(train_and_die, words(world, "run"), suffix) == -signal.SIGKILL
    before = files(world)
    committed = [name for name in before if name.startswith("news-") and name.endswith(".json")]
    assert len(committed) == 1
    counted: list[int] = []
    compute = StateFiller._tensors

    def tensors(self: StateFiller, rows: np.ndarray, count: Any) -> Any:
        counted.append(int(rows[0]))
        return compute(self, rows, count)

    monkeypatch.setattr(StateFiller, "_tensors", tensors)
    assert main(words(world, "run")) == 0
    assert counted == [16, 32]
    after = files(world)
    assert {name: after[name] for name in committed} == {name: before[name] for name in committed}
    assert read_json(world.folder / "run" / "state.json")["state"] == "finished"


def test_a_signal_while_filling_ends_with_the_code_for_a_requeue(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compute = StateFiller._tensors

    def tensors(self: StateFiller, rows: np.ndarray, count: Any) -> Any:
        if rows[0] == 16:
            os.kill(os.getpid(), signal.SIGUSR1)
        return compute(self, rows, count)

    with monkeypatch.context() as patch:
        patch.setattr(StateFiller, "_tensors", tensors)
        assert main(words(world, "run")) == EXIT_REQUEUE
    assert "stopped by SIGUSR1: 1 of 3 cells of frozen layers' states" in capsys.readouterr().err
    assert not (world.folder / "run" / "state.json").exists()
    assert main(words(world, "run")) == 0
    # From its checkpoint a run goes on with the column that it had.
    longer = [*words(world, "run"), "--run.max_steps", "4"]
    assert main(longer) == 0
    state = read_json(world.folder / "run" / "state.json")
    assert (state["state"], state["step"]) == ("finished", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "FORMAT", 2)
        assert main([*longer, "--run.max_steps", "6"]) == 1
    assert "frozen_states" in capsys.readouterr().err


def test_two_runs_at_once_leave_one_valid_column(world: TinyWorld) -> None:
    context = multiprocessing.get_context("forkserver")
    runs = [
        context.Process(target=train_to_the_end, args=(words(world, f"run{number}"),))
        for number in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
    assert [run.exitcode for run in runs] == [0, 0]
    assert len([name for name in files(world) if name.endswith(".safetensors")]) == 3
    assert not [name for name in files(world) if name.startswith(".")]
    assert verify_column_folders(world.articles)[0] == []
