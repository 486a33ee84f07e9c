"""Killed and stopped runs, in real processes: the same losses afterwards, to the bit."""

import json
import random
import re
import time
from pathlib import Path

import pytest
from helpers.launch import launch, metrics, settings

DROPOUT = 0.3
STOPPED_WITHIN_S = 30
"""Once a rank is dead the others are gone within this time (torchrun's own patience with them)."""


def train_whole(folder: Path, processes: int, **changes) -> Path:
    run = folder / "run"
    spec = {"settings": settings(run, **changes), "dropout": DROPOUT}
    done = launch(folder, spec, processes)
    assert done.returncode == 0, done.stderr
    return run


def train_killed(folder: Path, processes: int, kill: dict, **changes) -> Path:
    """Kill on the way, then start the same command again."""
    run = folder / "run"
    spec = {"settings": settings(run, **changes), "dropout": DROPOUT}
    done = launch(folder, spec | {"kill": kill}, processes)
    ended = time.time()
    assert done.returncode != 0
    last = last_sign_of_life(run)
    assert ended - last < STOPPED_WITHIN_S
    assert json.loads((run / "state.json").read_text())["state"] != "finished"
    done = launch(folder, spec, processes)
    assert done.returncode == 0, done.stderr
    return run


def last_sign_of_life(run: Path) -> float:
    """When the last step was logged, or training began."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    starts = (run / "starts.jsonl").stat().st_mtime
    return float(json.loads(lines[-1])["time"]) if lines else starts


def same(run: Path, whole: Path) -> None:
    assert len(metrics(whole)) == 20
    for name in ("train/loss", "train/grad_norm", "train/loss_target"):
        assert metrics(run, name) == metrics(whole, name)
    ours, theirs = (r / "export" / "export.json" for r in (run, whole))
    assert json.loads(ours.read_text())["weights"] == json.loads(theirs.read_text())["weights"]


MODES = [
    pytest.param(1, None, id="plain"),
    pytest.param(2, None, id="ddp", marks=pytest.mark.slow),
    pytest.param(2, "zero0", id="zero0", marks=pytest.mark.slow),
    pytest.param(2, "zero1", id="zero1", marks=pytest.mark.slow),
    pytest.param(2, "zero2", id="zero2", marks=pytest.mark.slow),
    pytest.param(2, "zero3", id="zero3", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("processes", "deepspeed"), MODES)
def test_a1_sigkill_of_one_rank_at_a_random_step(tmp_path, processes, deepspeed):
    step = random.Random().randint(3, 20)
    rank = random.Random().randrange(processes)
    changes = {
        "run__deepspeed": deepspeed,
        "run__micro_batch": 2,
        "optimizer__amsgrad": True,
        "optimizer__schedule": "cosine",
    }
    kill = {"signal": "SIGKILL", "samples": 8 * step, "ranks": [rank]}
    whole = train_whole(tmp_path / "whole", processes, **changes)
    run = train_killed(tmp_path / "killed", processes, kill, **changes)
    same(run, whole)


def test_a1_killed_twice_and_both_times_later(tmp_path):
    """The second resume goes on from the second kill's checkpoint, not from the start.

    In the foreground: a kill soon after step 5 could find its checkpoint still on its way.
    """
    whole = train_whole(tmp_path / "whole", 1)
    folder = tmp_path / "killed"
    spec = {"settings": settings(folder / "run", run__background_saves=False), "dropout": DROPOUT}
    for step in (9, 17):
        kill = {"signal": "SIGKILL", "samples": 8 * step, "ranks": [0]}
        assert launch(folder, spec | {"kill": kill}).returncode != 0
    assert launch(folder, spec).returncode == 0
    starts = (folder / "run" / "starts.jsonl").read_text().splitlines()
    begun = [json.loads(line)["from_step"] for line in starts]
    assert begun[0] == 0
    assert begun == sorted(begun)
    assert begun[2] > begun[1] > 0
    same(folder / "run", whole)


@pytest.mark.parametrize(
    ("signal_name", "ranks"),
    [
        ("SIGTERM", [0]),
        pytest.param("SIGUSR1", [1], marks=pytest.mark.slow),
        pytest.param("SIGUSR2", [0, 1], marks=pytest.mark.slow),
        pytest.param("SIGINT", [1], marks=pytest.mark.slow),
    ],
)
def test_b1_b2_signal_on_any_rank_stops_all_at_one_step_with_a_checkpoint(
    tmp_path, signal_name, ranks
):
    processes = 1 if ranks == [0] else 2
    changes = {"run__micro_batch": 2, "run__checkpoint_every": 1000}
    whole = train_whole(tmp_path / "whole", processes, **changes)
    run = tmp_path / "stopped" / "run"
    spec = {"settings": settings(run, **changes), "dropout": DROPOUT}
    kill = {"signal": signal_name, "samples": 80, "ranks": ranks}
    done = launch(run.parent, spec | {"kill": kill}, processes)
    if processes == 1:
        assert done.returncode == 75
    else:
        # torchrun itself exits 1; it reports what its ranks exited with.
        assert re.findall(r"exitcode\s*: (\d+)", done.stderr)[-1] == "75"
    said = re.findall(r"StopForRequeue: .*after step (\d+) of 20", done.stderr)
    assert len(said) >= 1
    assert len(set(said)) == 1
    steps = [p.name for p in (run / "checkpoints").glob("step_*")]
    assert steps == [f"step_{int(said[0]):08d}"]
    assert launch(run.parent, spec, processes).returncode == 0
    same(run, whole)


@pytest.mark.slow
def test_error_on_rank_zero_is_an_error_on_all_and_nobody_hangs(tmp_path):
    run = tmp_path / "run"
    assert launch(tmp_path, {"settings": settings(run, run__max_steps=5)}, 2).returncode == 0
    spec = {"settings": settings(run, run__max_steps=9, optimizer__lr=0.5)}
    done = launch(tmp_path, spec, 2)
    assert done.returncode != 0
    assert "CheckpointError: the run folder holds another run: optimizer.lr" in done.stderr
