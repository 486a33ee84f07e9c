"""The memory formulas of `tnr plan` against every tensor that two real ranks hold."""

import json
import sys
from pathlib import Path

import pytest
from helpers.process import run

from trainer.engine.deepspeed_file import deepspeed_file_path
from trainer.plan.memory import rank_memory, way_of
from trainer.plan.sizes import bert_size, task_size
from trainer.recipes.load import from_settings

SCRIPT = Path(__file__).parents[1] / "helpers" / "measure_memory.py"
VOCAB_SIZE = 500
SMALL = {
    "reduce_bucket_size": 10_000,
    "allgather_bucket_size": 10_000,
    "stage3_prefetch_bucket_size": 10_000,
    "stage3_max_live_parameters": 10_000,
    "stage3_param_persistence_threshold": 0,
}
"""Buckets that do not hide a model of a million parameters."""

BYTES_A_PARAMETER = {"ddp": (16, 16), "zero0": (16, 16), "zero1": (14, 12), "zero2": (12, 12),
                     "zero3": (10, 10)}  # fmt: skip
"""After the first backward pass of a step and after its last, over two ranks: 4 of weights (2 where
they are divided), 2 of ZeRO's copy or stage 3's spare gradient, 8 or 4 of Adam, and gradients."""


@pytest.mark.timeout(300)
def test_formulas_against_the_tensors_of_real_engines(tmp_path: Path) -> None:
    ways: dict[str, str | None] = {"ddp": None}
    for name in ("zero0", "zero1", "zero2", "zero3"):
        content = json.loads(deepspeed_file_path(name).read_text(encoding="utf-8"))
        zero = content["zero_optimization"]
        zero |= SMALL if zero["stage"] else {}
        ways[name] = str(tmp_path / f"{name}.json")
        Path(ways[name]).write_text(json.dumps(content))
    settings = {
        "task": "post_train", "data.articles": "none", "run.dir": str(tmp_path / "run"),
        "run.global_batch": 8, "run.micro_batch": 2, "data.num_negatives": 1,
        "model.backbone.hidden_size": 128, "model.backbone.num_layers": 4,
    }  # fmt: skip
    spec = tmp_path / "spec.json"
    spec.write_text(
        json.dumps({"out": str(tmp_path / "out"), "ways": [*ways.values()], "settings": settings})
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([sys.executable, *launcher, str(SCRIPT), str(spec)], timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out").read_text())
    config = from_settings(settings, where="test")
    size = task_size(config, bert_size(config.model.backbone, VOCAB_SIZE))
    for name, path in ways.items():
        measured = found[str(path)]
        a_parameter = [measured[when] / size.parameters for when in ("first", "last")]
        # Beside the formulas are only what every run keeps: a batch, running statistics.
        assert a_parameter == pytest.approx(BYTES_A_PARAMETER[name], abs=0.45), name
        content = None if path is None else json.loads(Path(path).read_text())
        planned = rank_memory(size, way_of(name, content), 2)
        # Stages 1 and 2 keep the gradient of a tensor across the border of two parts whole, one in
        # each of the two groups of parameters.
        border = 2 * 4 * size.backbone.largest if name in ("zero1", "zero2") else 0
        most = planned.state + planned.buffers + planned.gathered + border
        assert max(measured.values()) <= most * 1.001, name
        # What is alive only within a pass is not seen between passes: DDP's buckets are no Python
        # tensors, stage 1 has both gradients for a moment.
        unseen = planned.buffers if name in ("ddp", "zero0") else 0
        unseen += 2 * size.parameters if name == "zero1" else 0
        unseen += border
        assert max(measured.values()) >= (most - unseen) * 0.97, name
