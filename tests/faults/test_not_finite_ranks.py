"""Two ranks agree on steps that are not finite, and on a save that failed in the background.

One launch trains all runs: every mode and policy, with a NaN among the samples of rank 1.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import state, train, weights
from helpers.launch import metrics, settings, torchrun
from helpers.toy import ToyData

SCRIPT = Path(__file__).parents[1] / "helpers" / "train_toys.py"
MODES = (None, "zero0", "zero1", "zero2", "zero3")
UNITS = 240
BAD = (4, 13)


def rows(*steps: int) -> list[int]:
    """Sample 5 of a step's global batch of 8, which is one of rank 1's 4 to 7."""
    order = ToyData(seed=3, num_units=UNITS).order
    return [int(order.span(8 * (step - 1), 8 * step)[0][5]) for step in steps]


def spec(run: Path, **changes: Any) -> dict[str, Any]:
    made = settings(run, run__micro_batch=2, optimizer__amsgrad=True, **changes)
    return {"settings": made, "units": UNITS, "poisoned": rows(*BAD)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder with the runs of two ranks, ``<mode>-<policy>`` and three that stop."""
    folder = tmp_path_factory.mktemp("ranks")
    specs = []
    for mode in MODES:
        for policy in ("skip", "reload"):
            run = folder / f"{mode}-{policy}"
            changes = {"run__deepspeed": mode, "run__not_finite": policy}
            # In two starts, with a bad step in each.
            specs += [spec(run, **changes, run__max_steps=10), spec(run, **changes)]
    specs.append(spec(folder / "stop"))
    specs.append(spec(folder / "budget", run__not_finite="skip", run__not_finite_budget=1))
    for way in (True, False):
        run = folder / f"refused-{way}"
        specs.append(spec(run, run__background_saves=way, run__not_finite="skip"))
        specs[-1]["refuse"] = f"{run.name}/checkpoints/.step_00000010"
    (folder / "spec.json").write_text(json.dumps({"runs": specs}))
    done = torchrun(folder, SCRIPT, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The runs of one rank without DeepSpeed, never stopped."""
    folder = tmp_path_factory.mktemp("alone")
    for policy in ("skip", "reload"):
        data = ToyData(seed=3, num_units=UNITS, poisoned=frozenset(rows(*BAD)))
        changes = {"run__not_finite": policy, "optimizer__amsgrad": True}
        train(folder / policy, data=data, **changes)
    return folder


def flat(value: Any) -> list[float]:
    return [x for part in value for x in flat(part)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("policy", ["skip", "reload"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_leaves_out_the_same_and_ends_alike(runs, alone, mode, policy):
    run = runs / f"{mode}-{policy}"
    assert state(run)["state"] == "finished"
    kept = json.loads((run / "checkpoints" / "step_00000020" / "state.json").read_text())
    first, second = BAD if policy == "skip" else (BAD[0], BAD[1] - 1)
    assert [(f["step"], f["what"], f["rank"]) for f in kept["not_finite"]] == [
        (first, "loss", 1),
        (second, "loss", 1),
    ]
    assert kept["backend"]["updates"] == (18 if policy == "skip" else 20)
    good = [step for step in range(1, 21) if policy == "reload" or step not in BAD]
    found, wanted = metrics(run), metrics(alone / policy)
    assert [found[s] for s in good] == pytest.approx([wanted[s] for s in good], rel=1e-5)
    ours, theirs = weights(run / "export"), weights(alone / policy / "export")
    for name, value in theirs.items():
        assert flat(ours[name]) == pytest.approx(flat(value), rel=1e-4, abs=1e-6), name


def stopped(run: Path) -> list[str]:
    """What each rank said; the numbers of the step and of the rank are the same for all."""
    return [(run / f"stopped-{rank}").read_text() for rank in (0, 1)]


def test_stop_and_a_used_up_budget_name_step_and_rank_on_all_ranks(runs):
    for said in stopped(runs / "stop"):
        assert said.startswith("TrainingError: the loss is not finite in step 4 on rank 1; nothing")
    assert state(runs / "stop")["state"] == "stopped"
    for said in stopped(runs / "budget"):
        assert "step 13 on rank 1; that is one more than run.not_finite_budget allows (1)" in said
    assert state(runs / "budget")["step"] == 10


@pytest.mark.parametrize("background", [True, False])
def test_a8_a_save_that_fails_on_rank_0_is_an_error_on_all_ranks(runs, background):
    """In the background it is one at a later step, never a hang and never unsaid."""
    run = runs / f"refused-{background}"
    for said in stopped(run):
        assert said.startswith("CheckpointError: checkpoint of step 10 could not be written")
        assert "No space left" in said
    assert (state(run)["state"], state(run)["step"]) == ("stopped", 5)
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_00000005"]
    assert max(metrics(run)) < 20
