"""The gradient of a global batch and the losses of 20 steps do not depend on how a run is spread.

One row is one run of a real task over a tiny world: fp32, no dropout, a global batch of 8. Its
reference is the same task (with the same frozen layers and negatives) on one process, plainly, in
one micro-batch, without sub-batches. The gradient is that of step 1 by parameter name, gathered
whole; both agree to 1e-5.

Titles shared among ranks are held to the same reference, where every rank encodes its own.

Which rows: every task meets every number of ranks, ZeRO stage, micro-batch, checkpointing of
activations, frozen layers, offloading. Every ZeRO stage meets each of the four pairs of
(checkpointed or not, frozen or not), in-batch negatives gathered over ranks, several micro-batches
and sub-batches; stages 1 to 3 meet offloading. Not the whole product: what a stage does to a
gradient does not depend on which task made it. All rows of a number of ranks share one launch.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.modes import MODES, deepspeed_file
from helpers.process import torchrun
from helpers.world import TINY_CLICKS, TinyWorld, make_world, read_by
from safetensors.torch import load_file

from trainer.teacher_server.fill import FillRequest, fill

SCRIPT = Path(__file__).parents[1] / "helpers" / "train_rows.py"
STEPS, GLOBAL_BATCH, TOLERANCE = 20, 8, 1e-5
TASKS = ("post_train", "post_train_distill", "finetune", "finetune_distill")
STAGES = ("torch", "zero0", "zero1", "zero2", "zero3")
OFFLOADS = ("zero1_offload", "zero2_offload", "zero3_offload")


@dataclass(frozen=True)
class Row:
    """One run; the defaults are those of a reference."""

    task: str
    ranks: int = 1
    mode: str = "torch"
    micro: int = GLOBAL_BATCH
    checkpointed: bool = False
    frozen: bool = False
    in_batch: bool = False
    sub_batches: bool = False
    shared: bool = False

    @property
    def name(self) -> str:
        flags = ("checkpointed", "frozen", "in_batch", "sub_batches", "shared")
        words = [flag for flag in flags if getattr(self, flag)]
        return "-".join([self.task, f"{self.ranks}x{self.micro}", self.mode, *words])

    @property
    def reference(self) -> "Row":
        return Row(self.task, frozen=self.frozen, in_batch=self.in_batch)


def rows_on_one_rank() -> list[Row]:
    """Every micro-batch plainly, and DeepSpeed without a second rank."""
    rows = []
    for t, task in enumerate(TASKS):
        for micro in (1, 2, 4):
            rows.append(Row(task, micro=micro, frozen=micro == 2, sub_batches=micro != 2))
        mode = ("zero0", "zero1", "zero2", "zero3")[t]
        rows.append(Row(task, mode=mode, micro=4, checkpointed=True, frozen=True))
        rows.append(Row(task, checkpointed=True))
    rows.append(Row("finetune", micro=4, shared=True))
    return rows


def rows_on_two_ranks() -> list[Row]:
    """Every task at every stage; (checkpointed, frozen) takes all four pairs at each stage."""
    rows = []
    for t, task in enumerate(TASKS):
        for s, mode in enumerate(STAGES):
            checkpointed, frozen = (t + s) % 2 == 1, (t // 2 + s) % 2 == 1
            micro = (4, 2, 1)[(t + s) % 3]
            rows.append(Row(task, 2, mode, micro, checkpointed, frozen, sub_batches=micro != 4))
        offload = OFFLOADS[(t + 1) % 3]
        rows.append(Row(task, 2, offload, 2, checkpointed=t % 2 == 0, frozen=t < 2))
    rows += [
        Row("post_train", 2, mode, 4, checkpointed=s % 2 == 0, in_batch=True)
        for s, mode in enumerate(STAGES)
    ]
    return rows + rows_of_shared_titles(2)


def rows_of_shared_titles(ranks: int) -> list[Row]:
    """Titles dealt out to ranks: on two at every stage, on four at three; ZeRO-3 with either
    task."""
    rows = [
        Row("finetune", 2, "torch", 4, checkpointed=True, sub_batches=True, shared=True),
        Row("finetune_distill", 2, "zero0", 2, frozen=True, shared=True),
        Row("finetune", 2, "zero1", 4, checkpointed=True, frozen=True, shared=True),
        Row("finetune_distill", 2, "zero2", 4, sub_batches=True, shared=True),
        Row("finetune", 2, "zero3", 2, frozen=True, sub_batches=True, shared=True),
        Row("finetune_distill", 2, "zero3", 4, checkpointed=True, shared=True),
        Row("finetune_distill", 4, "torch", 1, frozen=True, sub_batches=True, shared=True),
        Row("finetune", 4, "zero2", 2, checkpointed=True, shared=True),
        Row("finetune_distill", 4, "zero3", 2, sub_batches=True, shared=True),
    ]
    return [row for row in rows if row.ranks == ranks]


def rows_on_four_ranks() -> list[Row]:
    """Every task under ZeRO-3 and under one of the other modes, the flags the other way round."""
    rows = []
    for t, task in enumerate(TASKS):
        for s, mode in enumerate((STAGES[t], "zero3")):
            checkpointed, frozen = (t + s) % 2 == 0, (t // 2 + s) % 2 == 1
            micro = (1, 2)[(t + s) % 2]
            rows.append(Row(task, 4, mode, micro, checkpointed, frozen, sub_batches=micro == 2))
    rows.append(Row("finetune_distill", 4, "zero3_hpz", 1, checkpointed=True))
    rows += [Row("post_train", 4, mode, 2, in_batch=True) for mode in ("torch", "zero3")]
    return rows + rows_of_shared_titles(4)


ROWS = rows_on_one_rank() + rows_on_two_ranks() + rows_on_four_ranks()
REFERENCES = list(dict.fromkeys(row.reference for row in ROWS))


def test_the_table_keeps_its_rule() -> None:
    assert len({row.name for row in ROWS + REFERENCES}) == len(ROWS) + len(REFERENCES)
    assert {mode for row in ROWS for mode in [row.mode]} == set(MODES)
    for task in TASKS:
        met = [row for row in ROWS if row.task == task]
        assert {row.ranks for row in met} == {1, 2, 4}
        assert {row.mode for row in met} >= set(STAGES)
        assert {row.micro for row in met} == {1, 2, 4, 8}
        assert any(row.mode in OFFLOADS for row in met)
        for flag in ("checkpointed", "frozen", "sub_batches"):
            assert {getattr(row, flag) for row in met} == {True, False}
    for stage in STAGES:
        met = [row for row in ROWS if row.mode == stage and row.ranks > 1]
        assert len({(row.checkpointed, row.frozen) for row in met}) == 4
        assert any(row.in_batch for row in met)
        assert any(row.micro * row.ranks < GLOBAL_BATCH for row in met)
        assert any(row.sub_batches for row in met)
        shared = [row for row in met if row.shared]
        assert shared, f"{stage} must meet shared titles"
    for flag in ("checkpointed", "frozen", "sub_batches"):
        assert {getattr(row, flag) for row in ROWS if row.shared} == {True, False}
    assert {(row.task, row.ranks) for row in ROWS if row.shared and row.ranks > 1} == {
        (task, ranks) for task in ("finetune", "finetune_distill") for ranks in (2, 4)
    }


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], dict[str, Any]]:
    """Shard sets, stored teachers for both stages, and the settings of a row over them."""
    world = make_world(tmp_path_factory.mktemp("table"), num_articles=60)
    teachers = {stage: stored_teachers(world, stage) for stage in (1, 2)}

    def settings(row: Row) -> dict[str, Any]:
        given = {
            "task": row.task,
            "data.articles": str(world.articles.path),
            **TINY_CLICKS,
            "data.batch_tokens": 128 if row.sub_batches else 0,
            "data.in_batch_negatives": row.in_batch,
            "data.share_titles": "all" if row.shared else "rank",
            "model.backbone.hidden_dropout": 0.0,
            "model.backbone.attention_dropout": 0.0,
            "model.trainable_layers": 1 if row.frozen else None,
            "model.user_encoder": "nrms",
            "model.user_heads": 2,
            "optimizer.lr": 0.01,
            "optimizer.backbone_lr": 0.001,
            # Both kinds of Adam; no clipping, which would hide a gradient of the wrong size.
            "optimizer.amsgrad": row.task.startswith("finetune"),
            "optimizer.weight_decay": 0.1 if row.task.startswith("finetune") else 0.0,
            "run.dir": str(world.folder / "runs" / row.name),
            "run.deepspeed": deepspeed_file(world.folder, row.mode),
            "run.global_batch": GLOBAL_BATCH,
            "run.micro_batch": row.micro,
            "run.activation_checkpointing": row.checkpointed,
            "run.max_steps": STEPS,
            "run.epochs": 100.0,
            "run.log_every": 1,
            "run.checkpoint_every": STEPS,
            "run.copies.rule": "none",
        }
        if row.task.startswith("finetune"):
            given["data.clicks"] = str(world.impressions.path)
        if row.task.endswith("distill"):
            given["teachers.models"] = teachers[1 if row.task.startswith("post") else 2]
        return read_by(row.task, given)

    return settings


def stored_teachers(world: TinyWorld, stage: int) -> list[str]:
    """Two exported teachers whose columns are filled."""
    task = "post_train" if stage == 1 else "finetune"
    teachers = [world.teacher(task, seed) for seed in (1, 2)]
    impressions = world.impressions if stage == 2 else None
    fill(teachers, FillRequest(world.articles, impressions), lambda line: None)
    return teachers


@dataclass(frozen=True)
class Outcome:
    losses: dict[str, float]
    gradient: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def outcome_of(settings_of, tmp_path_factory) -> Callable[[Row], Outcome]:
    """What a row did; the first question about a number of ranks launches all its rows."""
    launched: dict[int, tuple[Path, str]] = {}

    def launch(ranks: int) -> tuple[Path, str]:
        out = tmp_path_factory.mktemp(f"ranks{ranks}")
        # torch's own first: they must not lean on what DeepSpeed leaves behind in a process.
        rows = sorted(
            (row for row in REFERENCES + ROWS if row.ranks == ranks),
            key=lambda row: row.mode != "torch",
        )
        spec = {"out": str(out), "rows": {row.name: settings_of(row) for row in rows}}
        (out / "spec.json").write_text(json.dumps(spec))
        done = torchrun([str(SCRIPT), str(out / "spec.json")], processes=ranks, timeout=500)
        return out, done.stderr[-3000:]

    def outcome(row: Row) -> Outcome:
        if row.ranks not in launched:
            launched[row.ranks] = launch(row.ranks)
        out, said = launched[row.ranks]
        error = out / f"{row.name}.error"
        assert not error.exists(), error.read_text()
        assert (out / f"{row.name}.json").exists(), f"the launch ended before this row: {said}"
        losses = json.loads((out / f"{row.name}.json").read_text())["losses"]
        return Outcome(losses, load_file(out / f"{row.name}.safetensors"))

    return outcome


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_run_is_the_same_however_it_is_spread(outcome_of, row: Row) -> None:
    found, expected = outcome_of(row), outcome_of(row.reference)
    assert list(expected.losses) == [str(step) for step in range(1, STEPS + 1)]
    assert expected.losses[str(STEPS)] < expected.losses["1"]
    assert found.losses == pytest.approx(expected.losses, rel=TOLERANCE)
    assert found.gradient.keys() == expected.gradient.keys()
    whole = torch.stack([value.norm() for value in expected.gradient.values()]).norm()
    for name, wanted in expected.gradient.items():
        # Biases of keys have no gradient but rounding: they are measured by the whole.
        allowed = TOLERANCE * max(wanted.norm(), 0.01 * whole)
        assert (found.gradient[name] - wanted).norm() <= allowed, name
