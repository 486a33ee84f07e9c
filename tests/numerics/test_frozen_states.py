"""Training from the column of frozen layers' states: the losses and gradients of the plain way
without dropout, for families, tasks, sub-batches, ranks and ZeRO stages."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.inprocess import alone
from helpers.modes import deepspeed_file
from helpers.process import torchrun
from helpers.sets import make_impressions
from helpers.world import TINY_CLICKS, TinyWorld, make_world
from safetensors.torch import load_file
from torch import nn

from shards.reader import ShardSet
from shards.stream import Stream
from shards.tokenize import tokenize_set
from trainer.evaluate.sharded import Ranks, encode_shared
from trainer.frozen.texts import frozen_texts
from trainer.models.configuration import NewsEncoderConfig, RecommenderConfig
from trainer.models.parameters import set_trainable
from trainer.models.recommender import Recommender
from trainer.tasks.build import build
from trainer.tasks.finetune.clicks import (
    ClickData,
    FinetuneDistillModule,
    FinetuneModule,
    news_texts,
)
from trainer.tasks.finetune.sources import open_clicks
from trainer.tasks.finetune.task import ClickLossConfig
from trainer.tasks.live import LiveClickSignals
from trainer.tasks.texts import Grouping

SCRIPT = Path(__file__).parents[1] / "helpers" / "train_rows.py"
STILL: dict[str, Any] = {
    "model.backbone.hidden_dropout": 0.0,
    "model.backbone.attention_dropout": 0.0,
    "model.backbone.num_layers": 3,
    "model.trainable_layers": 1,
    "data.batch_tokens": 26,
}
FAMILIES: dict[str, Any] = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "mpnet": transformers.MPNetConfig,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("frozen"), num_articles=60)


def silent(line: str) -> None:
    pass


def settings(**changes: Any) -> dict[str, Any]:
    """Settings for :meth:`TinyWorld.config`."""
    given = STILL | {name.replace("__", "."): value for name, value in changes.items()}
    return {name.replace(".", "__"): value for name, value in given.items()}


def recommender_of(family: str, bias: bool, pad_id: int) -> Recommender:
    """Three layers of a family without dropout, of which the upper two are trained."""
    sizes = {
        "vocab_size": 200,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "pad_token_id": pad_id,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(5)
    news = NewsEncoderConfig(
        backbone=FAMILIES[family](**sizes), query_dim=8, news_dim=12, relative_position_bias=bias
    )
    model = Recommender(RecommenderConfig(news_encoder=news, query_dim=8))
    table = model.news_encoder.backbone.rel_pos_bias
    if table is not None:
        nn.init.normal_(table.weight)
    set_trainable(model, 2)
    return model


def outcome(task: nn.Module, data: ClickData) -> tuple[Any, dict[str, torch.Tensor]]:
    """Losses and gradients of a micro-batch."""
    task.train().zero_grad()
    out = task(data.collate(next(Stream(data.order, 8))).batch)
    out["loss"].backward()
    return out, {n: p.grad for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("batch_tokens", [0, 30])
@pytest.mark.parametrize("teachers", [0, 2])
@pytest.mark.parametrize(
    ("family", "bias"), [("bert", False), ("bert", True), ("roberta", False), ("mpnet", False)]
)
def test_losses_and_gradients_are_those_of_the_plain_way(
    world: TinyWorld, family: str, bias: bool, teachers: int, batch_tokens: int
) -> None:
    signals = None
    if teachers:
        names = [world.teacher("finetune", seed) for seed in range(teachers)]
        signals = LiveClickSignals(world.articles, world.impressions, names)
    model = recommender_of(family, bias, world.tokens.pad_id)
    task: nn.Module = FinetuneModule(model)
    if signals is not None:
        task = FinetuneDistillModule(model, signals.dims, ClickLossConfig(), None, signals.say)
    changes = {"model__frozen_states": "float32", "model__trainable_layers": 2}
    config = world.config("finetune", **settings(**changes))
    texts = news_texts(config, world.tokens)
    states = frozen_texts(config, model.news_encoder, texts, silent)

    def data(**given: Any) -> ClickData:
        made = ClickData(config, open_clicks(config), signals, **given)
        made.grouping = Grouping(batch_tokens)
        return made

    plain, expected = outcome(task, data())
    ours, gradients = outcome(task, data(states=states))
    for name, loss in plain["losses"].items():
        torch.testing.assert_close(ours["losses"][name], loss, rtol=1e-5, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_float16_rounds_states_to_11_bits_and_keeps_the_trained_dropout(world: TinyWorld) -> None:
    """The error that the setting's docstring names; layers above the column still drop."""
    built = {}
    for dtype in ("float32", "float16"):
        torch.manual_seed(4)
        changes = settings(model__frozen_states=dtype)
        built[dtype] = build(world.config("finetune", **changes))
    exact, rounded = (built[dtype].data.states for dtype in ("float32", "float16"))
    rows = np.arange(60)
    states, lower = exact.batch(rows)[0], rounded.batch(rows)[0]
    assert states.dtype == np.float32 and lower.dtype == np.float16
    error = np.abs(states - lower)
    assert error.max() > 0 and (error <= 2.0**-11 * np.abs(states) + 2.0**-24).all()
    first, expected = outcome(built["float32"].module, built["float32"].data)
    second, gradients = outcome(built["float16"].module, built["float16"].data)
    assert second["loss"].item() == pytest.approx(first["loss"].item(), rel=1e-3)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=2e-2 * largest)
    dropping = settings(model__frozen_states="float32", model__backbone__hidden_dropout=0.5)
    torch.manual_seed(4)
    still = build(world.config("finetune", **dropping))
    losses = {outcome(still.module, still.data)[0]["loss"].item() for _ in range(3)}
    assert len(losses) == 3
    # Dropout is no part of a frozen state: all three columns but float16's are one.
    assert still.data.states.reader.folder == exact.reader.folder


@pytest.mark.parametrize(
    ("dtype", "precision", "most"),
    [("float32", "fp32", 1e-6), ("float16", "fp32", 2e-3), ("float32", "bf16", 2e-2)],
)
def test_a_validation_starts_from_the_column(
    world: TinyWorld, dtype: str, precision: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors and numbers of the whole model, without a layer below the cut being computed."""
    log = make_impressions(world.folder / f"log-{dtype}-{precision}", world.articles, 90, seed=3)
    changes = {
        "model__frozen_states": dtype,
        "run__precision": precision,
        "validation__clicks": str(log.path),
    }
    torch.manual_seed(4)
    built = build(world.config("finetune", **settings(**changes)))
    model, validation = built.module.model.train(), built.validation
    assert validation is not None
    whole = dataclasses.replace(validation, texts=built.data.news)
    found = {}
    for name, one in (("whole", whole), ("column", validation)):
        if name == "column":
            monkeypatch.setattr(model.news_encoder, "forward", None)
        how = {"precision": precision, "batch_tokens": 64}
        found[name] = (
            encode_shared(model, one.texts, one.articles, Ranks(), **how),
            one.measure(model, alone(), on_part=lambda done: None).values,
        )
    assert model.training
    (expected, numbers), (vectors, ours) = found["whole"], found["column"]
    assert np.abs(expected).max() > 0 and len(np.unique(expected.round(3), axis=0)) > 50
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=most * np.abs(expected).max())
    if dtype == "float16":
        assert not np.array_equal(vectors, expected)
    assert ours == pytest.approx(numbers, abs=1e-6 if most == 1e-6 else 1e-2)


ROWS: dict[str, dict[str, Any]] = {
    "ddp": {"run.micro_batch": 4},
    "accumulated": {"run.micro_batch": 2, "run.activation_checkpointing": True},
    "zero1": {"run.micro_batch": 4, "run.deepspeed": "zero1"},
    "zero2": {"run.micro_batch": 2, "run.deepspeed": "zero2"},
    "zero3": {"run.micro_batch": 4, "run.deepspeed": "zero3"},
    "zero3_offload": {"run.micro_batch": 4, "run.deepspeed": "zero3_offload"},
    "zero3_checkpointed": {
        "run.micro_batch": 2,
        "run.deepspeed": "zero3",
        "run.activation_checkpointing": True,
    },
}


@pytest.fixture(scope="module")
def spread(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every row in one launch of two ranks, and the reference: DDP without the column."""
    out = tmp_path_factory.mktemp("rows")
    rows = {"plain": row(world, out, "plain", STILL | {"run.micro_batch": 4})}
    for name, changes in ROWS.items():
        given = STILL | {"model.frozen_states": "float32"} | changes
        if "run.deepspeed" in given:
            given["run.deepspeed"] = deepspeed_file(out, given["run.deepspeed"])
        rows[name] = row(world, out, name, given)
    spec = {"rows": rows, "out": str(out)}
    (out / "two.json").write_text(json.dumps(spec))
    done = torchrun([str(SCRIPT), str(out / "two.json")], processes=2, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def row(world: TinyWorld, out: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        **TINY_CLICKS,
        "task": "finetune",
        "data.articles": str(world.articles.path),
        "data.clicks": str(world.impressions.path),
        "run.dir": str(out / "runs" / name),
        "run.max_steps": 6,
        "run.epochs": 100.0,
        "run.log_every": 1,
        "optimizer.lr": 0.01,
        **changes,
    }


@pytest.mark.parametrize("name", ROWS)
def test_two_ranks_from_the_column_are_two_without_it(spread: Path, name: str) -> None:
    assert not list(spread.glob("*.error")), next(spread.glob("*.error")).read_text()
    expected = load_file(spread / "plain.safetensors")
    found = load_file(spread / f"{name}.safetensors")
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-5, atol=1e-6)
    losses, plain = (json.loads((spread / f"{n}.json").read_text()) for n in (name, "plain"))
    assert losses["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    # Exports are whole models, with the frozen layers as they were.
    ours, whole = (
        load_file(spread / "runs" / n / "export" / "model.safetensors") for n in (name, "plain")
    )
    assert ours.keys() == whole.keys()
    trained = {parameter.removeprefix("model.") for parameter in expected}
    assert 0 < len(trained) < len(whole)
    for parameter in whole.keys() - trained:
        assert torch.equal(ours[parameter], whole[parameter])


@pytest.mark.plm
def test_a_real_encoder_has_the_same_losses_and_gradients(
    real_encoders: Path, tmp_path: Path
) -> None:
    """Its own settings and tokens, cut above four of its six layers."""
    name = real_encoders / "all-MiniLM-L6-v2"
    world = make_world(tmp_path)
    articles = ShardSet.open(world.articles.path)
    made = tokenize_set(articles, str(name), title_tokens=12, body_tokens=40)
    changes = {
        "model__backbone__name": str(name),
        "model__trainable_layers": 2,
        "data__tokens": made.folder.name,
        "data__max_title_tokens": 12,
    }
    found = {}
    for kind in ("off", "float32", "float16"):
        torch.manual_seed(4)
        built = build(world.config("finetune", **settings(model__frozen_states=kind, **changes)))
        found[kind] = outcome(built.module, built.data)
    (plain, expected), (ours, gradients) = found["off"], found["float32"]
    assert ours["loss"].item() == pytest.approx(plain["loss"].item(), rel=1e-5)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-4, atol=1e-5)
    rounded, gradients = found["float16"]
    assert rounded["loss"].item() == pytest.approx(plain["loss"].item(), rel=1e-3)
    length = sum(float(g.square().sum()) for g in expected.values())
    away = sum(float((gradients[n] - g).square().sum()) for n, g in expected.items())
    assert 0 < away < 1e-6 * length
