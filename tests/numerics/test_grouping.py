"""Sub-batches of like lengths: the same losses and gradients as one padded batch, on every rank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.launch import metrics
from helpers.tnr import tnr
from helpers.world import TINY_CLICKS, TinyWorld, make_world, read_by

from shards.length_groups import length_groups, most_groups
from shards.stream import Stream
from trainer.tasks.build import build
from trainer.tasks.finetune.clicks import Clicks
from trainer.tasks.post_train.pairs import Pairs
from trainer.tasks.texts import Grouping, SubBatch, Texts, encode_texts, grouping_of

BUDGET = 48
TIGHT = 26
STILL = {"model__backbone__hidden_dropout": 0.0, "model__backbone__attention_dropout": 0.0}
TASKS = ("post_train", "post_train_distill", "finetune", "finetune_distill")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("grouping"), num_articles=60)


def built_task(world: TinyWorld, task: str, batch_tokens: int, **more):
    """A task with the same weights whatever the grouping."""
    teachers = {}
    if task.endswith("distill"):
        models = (world.teacher(task.removesuffix("_distill"), seed) for seed in (1, 2))
        teachers = {"teachers__models": tuple(models), "teachers__source": "live"}
    config = world.config(task, data__batch_tokens=batch_tokens, **STILL, **teachers, **more)
    torch.manual_seed(4)
    return config, build(config)


def outcome(built, grouping: Grouping):
    """Loss and gradients of a micro-batch, its padding, and how often the encoder was called."""
    built.data.grouping = grouping
    made = built.data.collate(next(Stream(built.data.order, 8)))
    calls = []
    encoder = getattr(built.module.model, "news_encoder", built.module.model)
    hook = encoder.register_forward_pre_hook(lambda _, texts: calls.append(texts[0].shape))
    built.module.zero_grad()
    built.module.train()
    dtype = next(built.module.parameters()).dtype
    out = built.module(made.batch.map(lambda t: t.to(dtype) if t.is_floating_point() else t))
    out["loss"].backward()
    hook.remove()
    gradients = {n: p.grad for n, p in built.module.named_parameters() if p.grad is not None}
    return out, gradients, made.counts.padding, calls


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_grouping_changes_neither_losses_nor_gradients(world, task, is_fixed):
    _, built = built_task(world, task, BUDGET)
    rtol, atol = 1e-5, 1e-6
    if not task.endswith("distill"):  # whose losses are computed in float32
        built.module.double()  # rounding in float32 differs between types of CPU
        rtol, atol = 1e-9, 1e-11
    whole, expected, padded_share, calls = outcome(built, Grouping())
    assert len(calls) == (2 if task.startswith("post") else 1)
    out, gradients, share, calls = outcome(built, Grouping(BUDGET, is_fixed))
    assert len(calls) > 4
    assert all(n == 1 or n * length <= BUDGET for n, length in calls)
    for name in whole["losses"]:
        assert out["losses"][name].item() == pytest.approx(whole["losses"][name].item(), rel=rtol)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=rtol, atol=atol)
    if not is_fixed:
        assert share < 0.7 * padded_share


def all_texts(batch: Pairs | Clicks) -> list[Texts]:
    return [batch.titles, batch.bodies] if isinstance(batch, Pairs) else [batch.news]


@pytest.mark.parametrize("task", ["post_train", "finetune"])
def test_padding_reported_is_that_of_the_forward_passes(world, task):
    _, built = built_task(world, task, BUDGET)
    for grouping in (Grouping(), Grouping(BUDGET), Grouping(BUDGET, is_fixed=True)):
        _, _, share, calls = outcome(built, grouping)
        tokens = 0
        for texts in all_texts(built.data.collate(next(Stream(built.data.order, 8))).batch):
            sums = np.concatenate([part.mask.numpy().sum(axis=1) for part in texts.parts])
            tokens += sums[slice(None) if texts.place is None else texts.place].sum()
        assert share == pytest.approx(1 - tokens / sum(n * length for n, length in calls), abs=1e-6)


def test_calls_are_a_function_of_the_configuration_where_they_must_be(world):
    """Micro-batches of unlike texts: as many calls as the longest texts would need, always."""
    _, built = built_task(world, "finetune", BUDGET)
    counts, adaptive = set(), set()
    stream = Stream(built.data.order, 8)
    for _ in range(8):
        rows = next(stream)
        built.data.grouping = Grouping(BUDGET, is_fixed=True)
        counts.add(len(built.data.collate(rows).batch.news.parts))
        built.data.grouping = Grouping(BUDGET)
        adaptive.add(len(built.data.collate(rows).batch.news.parts))
    assert counts == {most_groups(8 * (5 + 1 + 3), 10, BUDGET)}
    assert len(adaptive) > 1


def test_a_repeated_text_gets_no_gradient_and_still_runs_backward():
    ids = [torch.tensor([[1]]), torch.tensor([[2]]), torch.tensor([[2]])]
    parts = tuple(SubBatch(part, torch.ones_like(part)) for part in ids)
    texts = Texts(parts, place=torch.tensor([1, 0]))
    outputs = []

    def encode(ids, mask):
        out = ids.float().requires_grad_(True)
        outputs.append(out)
        return out

    encode_texts(encode, texts).sum().backward()
    assert [out.grad.item() for out in outputs] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"data__pad_to_max": True},
        {"model__pooling_mask": False},
        {"data__batch_tokens": 0},
    ],
)
def test_no_grouping_where_padding_takes_part_in_a_vector(world, changes):
    config = world.config("post_train", **{"data__batch_tokens": BUDGET} | changes)
    assert grouping_of(config) == Grouping()


def test_grouping_is_fixed_under_zero_3_alone(world):
    config = world.config("post_train", data__batch_tokens=BUDGET)
    assert grouping_of(config, pads_matter=True) == Grouping()
    for stage, is_fixed in ((None, False), ("zero1", False), ("zero2", False), ("zero3", True)):
        run = replace(config.run, deepspeed=stage)
        found = grouping_of(replace(config, run=run))
        assert found == Grouping(BUDGET, is_fixed)


def train(world: TinyWorld, name: str, task: str, processes: int, *more: object):
    tiny = read_by(task, TINY_CLICKS)
    settings = [word for key, value in tiny.items() for word in (f"--{key}", value)]
    where = ["--data.articles", world.articles.path, "--run.dir", world.folder / "runs" / name]
    if task == "finetune":
        where += ["--data.clicks", world.impressions.path]
    done = tnr(
        *("train", task, *where, *settings, "--run.max_steps", 6, "--run.epochs", 100),
        *("--run.micro_batch", 4, "--run.log_every", 1, "--optimizer.lr", 1e-2),
        *("--run.copies.rule", "none"),
        *("--model.backbone.hidden_dropout", 0, "--model.backbone.attention_dropout", 0),
        *more,
        processes=processes,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return metrics(world.folder / "runs" / name)


@pytest.mark.parametrize(
    "mode",
    [
        "zero3",
        pytest.param("zero2", marks=pytest.mark.slow),
        pytest.param("ddp", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("task", ["post_train", pytest.param("finetune", marks=pytest.mark.slow)])
def test_two_ranks_with_unlike_texts_neither_hang_nor_differ(world, task, mode):
    """Texts for which the ranks would need unequal numbers of sub-batches."""
    _, built = built_task(world, task, TIGHT)
    needed = []
    for rank in range(2):
        built.data.grouping = Grouping(TIGHT)
        stream = Stream(built.data.order, 8, rank, 2)
        batches = [built.data.collate(next(stream)).batch for _ in range(6)]
        needed.append([sum(len(t.parts) for t in all_texts(batch)) for batch in batches])
    assert needed[0] != needed[1]
    plain = train(world, f"{task}-{mode}-plain", task, 1, "--data.batch_tokens", 0)
    deepspeed = () if mode == "ddp" else ("--run.deepspeed", mode)
    more = ("--data.batch_tokens", TIGHT, *deepspeed)
    grouped = train(world, f"{task}-{mode}", task, 2, *more)
    assert grouped == pytest.approx(plain, rel=1e-5)


def test_groups_of_no_texts():
    assert length_groups(np.zeros(0, dtype=np.int64), 10) == []
