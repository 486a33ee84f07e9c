"""The same global batches give the same losses plainly, under DDP and under every ZeRO stage."""

import json
from pathlib import Path

import pytest
from helpers.launch import launch, metrics, settings

PERSISTENT = "stage3_param_persistence_threshold"


@pytest.fixture(scope="module")
def zero3_that_shards_everything(tmp_path_factory) -> str:
    """The toy's parameters are below the usual threshold: without this they would stay whole."""
    path = tmp_path_factory.mktemp("ds") / "zero3_small.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, PERSISTENT: 0}}))
    return str(path)


ADAM: dict = {}
AMSGRAD = {
    "optimizer__amsgrad": True,
    "optimizer__max_grad_norm": 0.3,
    "optimizer__schedule": "linear",
    "optimizer__warmup_steps": 4,
    "optimizer__weight_decay": 0.1,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, Path]:
    runs = {}
    for name, changes in (("adam", ADAM), ("amsgrad", AMSGRAD)):
        run = tmp_path_factory.mktemp(name) / "run"
        spec = {"settings": settings(run, run__micro_batch=8, **changes)}
        done = launch(run.parent, spec)
        assert done.returncode == 0, done.stderr
        runs[name] = run
    return runs


def check_equal(run: Path, expected: Path) -> None:
    assert len(metrics(run)) == 20
    for name, tolerance in (("train/loss", 1e-5), ("train/loss_penalty", 1e-5)):
        assert metrics(run, name) == pytest.approx(metrics(expected, name), rel=tolerance)
    norms = metrics(expected, "train/grad_norm")
    assert metrics(run, "train/grad_norm") == pytest.approx(norms, rel=1e-4)
    ours, theirs = (json.loads((r / "export" / "export.json").read_text()) for r in (run, expected))
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, values in theirs["weights"].items():
        flat, wanted = flatten(ours["weights"][name]), flatten(values)
        assert flat == pytest.approx(wanted, rel=1e-3, abs=1e-4), name


def flatten(values) -> list[float]:
    if not isinstance(values, list):
        return [values]
    return [x for value in values for x in flatten(value)]


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad"])
@pytest.mark.parametrize(
    "mode", ["ddp", pytest.param("zero0"), "zero1", "zero2", "zero3", "zero3_small"]
)
@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, plain, zero3_that_shards_everything, mode, optimizer):
    """20 steps, two groups with their own rates, frozen parameters; two micro-batches a rank."""
    changes = {"adam": ADAM, "amsgrad": AMSGRAD}[optimizer] | {"run__micro_batch": 2}
    if mode == "zero3_small":
        changes["run__deepspeed"] = zero3_that_shards_everything
    elif mode != "ddp":
        changes["run__deepspeed"] = mode
    run = tmp_path / "run"
    done = launch(tmp_path, {"settings": settings(run, **changes)}, processes=2)
    assert done.returncode == 0, done.stderr
    check_equal(run, plain[optimizer])
    assert (run / "deepspeed.json").exists() == (mode != "ddp")


def test_two_processes_of_ddp_train_as_one(tmp_path, plain):
    run = tmp_path / "run"
    spec = {"settings": settings(run, run__micro_batch=4)}
    done = launch(tmp_path, spec, processes=2)
    assert done.returncode == 0, done.stderr
    check_equal(run, plain["adam"])


@pytest.mark.slow
def test_one_process_under_deepspeed_needs_no_launcher(tmp_path, plain):
    run = tmp_path / "run"
    done = launch(tmp_path, {"settings": settings(run, run__deepspeed="zero2")})
    assert done.returncode == 0, done.stderr
    check_equal(run, plain["adam"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "zero0", "zero2", "zero3"])
def test_bf16_means_the_same_everywhere(tmp_path, plain, mode):
    """Autocast, with fp32 weights: close to one process under bf16, and clearly not fp32."""
    changes = {"run__precision": "bf16", "run__micro_batch": 4}
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    if mode is not None:
        changes["run__deepspeed"] = mode
    runs = ((one, changes | {"run__deepspeed": None}, 1), (two, changes, 2))
    for run, chosen, processes in runs:
        done = launch(run.parent, {"settings": settings(run, **chosen)}, processes)
        assert done.returncode == 0, done.stderr
    first, fp32 = metrics(one)[1], metrics(plain["adam"])[1]
    # The same micro-batches in the same precision: equal far below the distance to fp32.
    assert abs(metrics(two)[1] - first) < 0.01 * abs(first - fp32)
    assert metrics(two) == pytest.approx(metrics(one), rel=2e-3)


@pytest.mark.slow
def test_checkpoints_go_from_one_world_and_stage_to_another(
    tmp_path, plain, zero3_that_shards_everything
):
    """plain -> ZeRO-2 on 2 -> ZeRO-3 on 2 -> DDP on 2 -> plain, in one run folder."""
    run = tmp_path / "run"
    path = [
        (4, None, 1),
        (8, "zero2", 2),
        (12, zero3_that_shards_everything, 2),
        (16, None, 2),
        (20, None, 1),
    ]
    for steps, deepspeed, processes in path:
        changes = {"run__max_steps": steps, "run__deepspeed": deepspeed, **AMSGRAD}
        changes |= {"optimizer__schedule": "constant"}
        done = launch(tmp_path, {"settings": settings(run, **changes)}, processes)
        assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole" / "run"
    changes = {**AMSGRAD, "optimizer__schedule": "constant"}
    assert launch(whole.parent, {"settings": settings(whole, **changes)}).returncode == 0
    check_equal(run, whole)
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [(s["from_step"], s["ranks"]) for s in starts] == [
        (0, 1),
        (4, 2),
        (8, 2),
        (12, 2),
        (16, 1),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "zero1", "zero3_small"])
def test_real_recommender_trains_the_same(tmp_path, zero3_that_shards_everything, mode):
    """The encoder with frozen layers, NRMS, users without a history; weights come out whole."""
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    known = {"zero3_small": zero3_that_shards_everything, "ddp": None}
    sharded = {"run__deepspeed": known.get(mode, mode)}
    for run, changes, processes in ((one, {}, 1), (two, sharded, 2)):
        spec = {"settings": settings(run, **changes), "model": "recommender"}
        done = launch(run.parent, spec, processes)
        assert done.returncode == 0, done.stderr
    assert metrics(two) == pytest.approx(metrics(one), rel=1e-5)
    ours, theirs = (json.loads((r / "export" / "export.json").read_text()) for r in (two, one))
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, values in theirs["weights"].items():
        wanted = flatten(values)
        assert flatten(ours["weights"][name]) == pytest.approx(wanted, rel=1e-3, abs=1e-4), name
