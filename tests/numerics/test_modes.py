"""Precisions, compiled layers and checkpoints mean the same under torch and every ZeRO stage.

One launch of two ranks trains all rows; the runs on one rank are in the tests' own process.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.launch import metrics
from helpers.modes import deepspeed_file
from helpers.process import torchrun
from helpers.train_rows import train
from helpers.world import TINY_MODEL, make_world
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[1] / "helpers" / "train_rows.py"
PRECISIONS = ("bf16", "fp16")
SPREAD = ("torch", "zero0", "zero2", "zero3", "zero2_offload")
COMPILED = ("torch", "zero0", "zero1", "zero2")
LEGS = {
    "zero2": 4,
    "zero1_offload": 7,
    "zero2_offload": 10,
    "zero3_offload": 13,
    "zero3": 15,
    "torch": 17,
}
"""Modes that a run goes through on two ranks, and the steps they take it to."""
FIRST_LEG, STEPS = 2, 20
UNFROZEN = {"model__trainable_layers": None, "run__max_steps": 3}

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    world = make_world(tmp_path_factory.mktemp("modes"), num_articles=60)

    def make(run: str, mode: str = "torch", **changes: Any) -> dict[str, Any]:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return {
            "task": "post_train",
            "data.articles": str(world.articles.path),
            **TINY_MODEL,
            "model.backbone.hidden_dropout": 0.0,
            "model.backbone.attention_dropout": 0.0,
            "model.trainable_layers": 1,
            "optimizer.lr": 0.01,
            "optimizer.backbone_lr": 0.001,
            "optimizer.amsgrad": True,
            "optimizer.weight_decay": 0.1,
            "optimizer.max_grad_norm": 0.3,
            "run.dir": str(world.folder / "runs" / run),
            "run.deepspeed": deepspeed_file(world.folder, mode),
            "run.micro_batch": 4,
            "run.max_steps": STEPS,
            "run.epochs": 100.0,
            "run.log_every": 1,
            "run.checkpoint_every": 100,
            "run.copies.rule": "none",
            **dotted,
        }

    return make


def rows_on_two_ranks(settings: Settings) -> dict[str, dict[str, Any]]:
    rows = {
        f"{precision}-{mode}": settings(f"{precision}-{mode}", mode, run__precision=precision)
        for precision in PRECISIONS
        for mode in SPREAD
    }
    rows |= {
        f"leg-{mode}": settings("legs", mode, run__max_steps=steps) for mode, steps in LEGS.items()
    }
    # Frozen layers would be compiled apart, for their inputs have no gradient; see the unit tests.
    return rows | {
        f"compiled-{mode}": settings(
            f"compiled-{mode}",
            mode,
            run__compile=True,
            run__activation_checkpointing=mode == "zero2",
            **UNFROZEN,
        )
        for mode in COMPILED
    }


@pytest.fixture(scope="module")
def alone(settings: Settings) -> dict[str, Path]:
    """Folders of runs on one rank without DeepSpeed, in fp32 and in the other precisions."""
    runs = {}
    changes: dict[str, dict[str, Any]] = {"fp32": {}, "unfrozen": UNFROZEN}
    changes |= {precision: {"run__precision": precision} for precision in PRECISIONS}
    for name, changed in changes.items():
        row = settings(f"alone-{name}", **changed)
        runs[name] = Path(row["run.dir"])
        train(f"alone-{name}", row, runs[name].parent)
    return runs


@pytest.fixture(scope="module")
def together(settings: Settings) -> dict[str, Path]:
    """Folders of all runs on two ranks."""
    first = settings("legs", run__max_steps=FIRST_LEG)
    out = Path(first["run.dir"]).parent
    train("leg-alone", first, out)
    rows = rows_on_two_ranks(settings)
    (out / "spec.json").write_text(json.dumps({"out": str(out), "rows": rows}))
    done = torchrun([str(SCRIPT), str(out / "spec.json")], processes=2, timeout=400)
    said = "\n".join(path.read_text() for path in out.glob("*.error"))
    assert done.returncode == 0, said or done.stderr[-3000:]
    return {name: Path(row["run.dir"]) for name, row in rows.items()}


def gradient(run: Path) -> torch.Tensor:
    """The first step's, laid end to end; it was left beside the run's folder."""
    stored = load_file(run.with_name(f"{run.name}.safetensors"))
    return torch.cat([stored[name].flatten() for name in sorted(stored)])


@pytest.mark.parametrize("mode", SPREAD)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_half_precision_means_the_same_everywhere(alone, together, precision, mode) -> None:
    """The same micro-batches in the same precision: equal far below the distance to fp32."""
    run, reference, fp32 = together[f"{precision}-{mode}"], alone[precision], alone["fp32"]
    distance = (gradient(reference) - gradient(fp32)).norm()
    assert 0 < distance < (5e-2 if precision == "bf16" else 5e-3) * gradient(fp32).norm()
    assert (gradient(run) - gradient(reference)).norm() < 0.2 * distance
    first = metrics(reference)[1]
    assert abs(metrics(run)[1] - first) < 0.05 * abs(first - metrics(fp32)[1])
    # Rounding carries small differences on from step to step.
    tolerance = 1e-2 if precision == "bf16" else 2e-3
    assert metrics(run) == pytest.approx(metrics(reference), rel=tolerance)
    weights = load_file(run / "export" / "model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {"torch.float32"}
    assert (run / "deepspeed.json").exists() == (mode != "torch")


def test_checkpoints_go_between_modes_and_numbers_of_ranks(settings, alone, together) -> None:
    """One rank, six modes on two ranks, and one rank again: the run that was never moved."""
    run = together["leg-torch"]
    train("leg-last", settings("legs"), run.parent)
    assert metrics(run) == pytest.approx(metrics(alone["fp32"]), rel=1e-5)
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    wanted = [(0, 1), *((step, 2) for step in (FIRST_LEG, *list(LEGS.values())[:-1])), (17, 1)]
    assert [(start["from_step"], start["ranks"]) for start in starts] == wanted
    moved, stayed = (
        load_file(folder / "checkpoints" / f"step_{STEPS:08d}" / "optimizer.safetensors")
        for folder in (run, alone["fp32"])
    )
    assert moved.keys() == stayed.keys()
    assert any(name.endswith("/max_exp_avg_sq") for name in moved)
    whole = max(value.norm() for value in stayed.values())
    for name, value in stayed.items():
        assert (moved[name] - value).norm() <= 1e-3 * value.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("mode", COMPILED)
def test_compiled_layers_train_the_same_under_the_same_names(alone, together, mode) -> None:
    run = together[f"compiled-{mode}"]
    plain = alone["unfrozen"]
    assert metrics(run) == pytest.approx(metrics(plain), rel=1e-5)
    for path in ("export/model.safetensors", "checkpoints/step_00000003/model.safetensors"):
        assert load_file(run / path).keys() == load_file(plain / path).keys()
