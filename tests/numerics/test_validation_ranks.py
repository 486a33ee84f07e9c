"""Validation over two ranks in every mode: the numbers of one process that evaluates the export.

One launch trains all modes; its runs end early, at a step that all ranks agree on.
"""

import json
from pathlib import Path

import pytest
from helpers.evaluated import evaluated
from helpers.modes import deepspeed_file
from helpers.process import torchrun
from helpers.world import TINY_CLICKS, make_world

from trainer.evaluate.metrics import METRIC_NAMES

SCRIPT = Path(__file__).parents[1] / "helpers" / "train_rows.py"
MODES = ("torch", "zero2", "zero3", "zero3_frozen")
EVERY, PATIENCE, STEPS = 2, 2, 20
END = EVERY * (1 + PATIENCE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Folders of the articles, of the impressions that are validated on, and of the runs."""
    world = make_world(tmp_path_factory.mktemp("ranks"), num_articles=60, num_impressions=80)
    held_out = make_world(world.folder / "other", num_articles=60, num_impressions=70).impressions
    out = world.folder / "runs"
    out.mkdir()
    rows = {}
    for mode in MODES:
        rows[mode] = {
            "task": "finetune",
            "data.articles": str(world.articles.path),
            "data.clicks": str(world.impressions.path),
            **TINY_CLICKS,
            "model.trainable_layers": 1,
            "model.frozen_states": "float32" if mode.endswith("_frozen") else "off",
            "optimizer.lr": 0.02,
            "run.dir": str(out / mode),
            "run.deepspeed": deepspeed_file(world.folder, mode.removesuffix("_frozen")),
            "run.micro_batch": 4,
            "run.max_steps": STEPS,
            "run.epochs": 100.0,
            "run.log_every": 1,
            "run.checkpoint_every": 100,
            "run.copies.rule": "list",
            "run.copies.steps": [EVERY, END],
            "validation.clicks": str(held_out.path),
            "validation.every": EVERY,
            "validation.patience": PATIENCE,
            "validation.min_delta": 1.0,  # only the first is an improvement
        }
    (out / "spec.json").write_text(json.dumps({"out": str(out), "rows": rows}))
    done = torchrun([str(SCRIPT), str(out / "spec.json")], processes=2, timeout=400)
    said = "\n".join(path.read_text() for path in out.glob("*.error"))
    assert done.returncode == 0, said or done.stderr[-3000:]
    return world.articles.path, held_out.path, out


@pytest.mark.parametrize("mode", MODES)
def test_ranks_validate_together_and_end_together(runs, mode):
    articles, held_out, out = runs
    run = out / mode
    records = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [r["step"] for r in records if "valid/auc" in r] == list(range(EVERY, END + 1, EVERY))
    assert max(r["step"] for r in records) == END
    state = json.loads((run / "state.json").read_text())
    assert (state["state"], state["step"], state["steps"]) == ("finished", END, STEPS)
    for step in (EVERY, END):
        copy = run / "copies" / f"step_{step:08d}"
        found = evaluated(copy, articles, held_out)["metrics"]
        logged = {name: records[step - 1][f"valid/{name}"] for name in METRIC_NAMES}
        assert logged == pytest.approx(found, abs=1e-9), f"step {step}"
    info = json.loads((run / "export" / "tnr.json").read_text())
    best = max(r["valid/auc"] for r in records if "valid/auc" in r)
    assert info["valid/auc"] == records[info["step"] - 1]["valid/auc"] == best
    found = evaluated(run / "export", articles, held_out)["metrics"]
    assert found["auc"] == pytest.approx(best, abs=1e-9), "the export is that of another step"
    assert (run / "checkpoints" / "best").read_text() == f"step_{info['step']:08d}\n"
