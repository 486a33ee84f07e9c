"""A gradient that is not finite leaves weights and optimizer as they were, in every mode."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.launch import settings
from helpers.modes import deepspeed_file
from helpers.process import torchrun

SCRIPT = Path(__file__).parents[1] / "helpers" / "not_finite_rows.py"
ROWS = [
    (mode, precision)
    for mode in (
        "torch",
        "zero0",
        "zero1",
        "zero2",
        "zero3",
        "zero1_offload",
        "zero2_offload",
        "zero3_offload",
    )
    for precision in ("fp32", "fp16")
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All rows in one launch of two processes, with two micro-batches a rank and AMSGrad."""
    folder = tmp_path_factory.mktemp("rows")
    rows = {
        f"{mode}-{precision}": settings(
            folder / "run",
            run__deepspeed=deepspeed_file(folder, mode),
            run__precision=precision,
            run__micro_batch=2,
            optimizer__amsgrad=True,
            optimizer__max_grad_norm=0.5,
        )
        for mode, precision in ROWS
    }
    spec = folder / "spec.json"
    spec.write_text(json.dumps({"rows": rows, "out": str(folder)}))
    done = torchrun([str(SCRIPT), str(spec)], processes=2, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in rows}


@pytest.mark.parametrize(("mode", "precision"), ROWS)
def test_a_step_that_is_not_finite_leaves_no_trace(found, mode, precision) -> None:
    """The poison is in one micro-batch of one rank; four steps with it are three without it, to the
    bit: weights, moments, and Adam's own counter."""
    row = found[f"{mode}-{precision}"]
    assert row["clean_applied"] == [True, True, True]
    outcome = row["poisons"]["loss"]
    assert outcome["applied"] == [True, True, False, True]
    assert [math.isfinite(norm) for norm in outcome["norms"]] == [True, True, False, True]
    assert outcome["step_left_all_as_it_was"]
    assert outcome["counters"] == [3.0]
    assert outcome["updates"] == 3
    assert outcome["run_is_as_without_it"]


@pytest.mark.parametrize("mode", [mode for mode, precision in ROWS if precision == "fp16"])
def test_a_scale_that_overflows_is_halved_and_the_step_left_out(found, mode) -> None:
    """A finite loss, but a gradient beyond fp16's 65,504 once scaled."""
    outcome = found[f"{mode}-fp16"]["poisons"]["scale"]
    assert outcome["applied"] == [True, True, False, True]
    assert outcome["scales"] == [2.0**16, 2.0**16, 2.0**40, 2.0**16]
    assert outcome["step_left_all_as_it_was"]
    assert outcome["run_is_as_without_it"]


def test_an_overflow_halves_the_scale(found) -> None:
    scales = [row["poisons"]["loss"]["scales"] for n, row in found.items() if n.endswith("fp16")]
    assert scales == [[2.0**16, 2.0**16, 2.0**16, 2.0**15]] * len(scales)
    fp32 = [row["poisons"]["loss"]["scales"] for n, row in found.items() if n.endswith("fp32")]
    assert fp32 == [[None] * 4] * len(fp32)
