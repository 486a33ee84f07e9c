"""A run that goes on with other numbers of ranks in other modes is the run that never moved.

The optimizer's state goes along: with Adam, amsgrad, clipping and weight decay, a moment that is
lost or counted wrongly is seen in the next losses.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import train, weights
from helpers.launch import metrics, settings, torchrun
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[1] / "helpers" / "train_toys.py"
MICRO_BATCH = {1: 4, 2: 2, 4: 1}
SETTINGS = {
    "optimizer__amsgrad": True,
    "optimizer__weight_decay": 0.1,
    "optimizer__max_grad_norm": 0.3,
    "optimizer__warmup_steps": 12,
}
WAYS = [
    ("ddp", None, None),
    ("zero0 to zero1", "zero0", "zero1"),
    ("zero1 to zero2", "zero1", "zero2"),
    ("zero2", "zero2", "zero2"),
    ("zero2 to zero3", "zero2", "zero3"),
    ("zero3", "zero3", "zero3"),
    ("zero3 to ddp", "zero3", None),
    ("ddp to zero3", None, "zero3"),
]
"""Name, mode on 2 ranks, mode on 4 ranks."""


LEGS = {"first": 5, "two": 10, "four": 15, "last": 20}
"""Steps up to which each start trains: on one rank, two, four, and one again."""


def leg(run: Path, ranks: int, steps: int, mode: str | None) -> dict[str, Any]:
    changes = {"run__micro_batch": MICRO_BATCH[ranks], "run__max_steps": steps}
    return settings(run, **SETTINGS, **changes, run__deepspeed=mode)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder with a run for each way, and ``whole``, on one rank all along."""
    folder = tmp_path_factory.mktemp("elastic")
    train(folder / "whole", **SETTINGS)
    for name, _, _ in WAYS:
        train(folder / name, **SETTINGS, run__max_steps=LEGS["first"])
    for ranks, steps, modes in (
        (2, LEGS["two"], {name: two for name, two, _ in WAYS}),
        (4, LEGS["four"], {name: four for name, _, four in WAYS}),
    ):
        legs = [{"settings": leg(folder / n, ranks, steps, mode)} for n, mode in modes.items()]
        (folder / "spec.json").write_text(json.dumps({"runs": legs}))
        done = torchrun(folder, SCRIPT, ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    for name, _, _ in WAYS:
        train(folder / name, **SETTINGS, run__max_steps=LEGS["last"])
    return folder


@pytest.mark.parametrize("name", [name for name, _, _ in WAYS])
def test_one_two_four_and_one_rank_again(runs, name):
    run, whole = runs / name, runs / "whole"
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [(s["from_step"], s["ranks"]) for s in starts] == [(0, 1), (5, 2), (10, 4), (15, 1)]
    for what in ("train/loss", "train/grad_norm"):
        assert sorted(metrics(run, what)) == list(range(1, 21))
        assert metrics(run, what) == pytest.approx(metrics(whole, what), rel=1e-5), what
    assert weights(run / "export").keys() == weights(whole / "export").keys()
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (
            load_file(folder / "checkpoints" / "step_00000020" / file) for folder in (run, whole)
        )
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert (ours[key] - value).norm() <= 1e-4 * value.norm() + 1e-6, f"{file}: {key}"
