"""`tnr plan`: formulas against numbers worked out by hand, and what the command says."""

import json
from pathlib import Path

import pytest
from helpers.world import TINY_MODEL, TinyWorld, make_world

from trainer.cli.main import main
from trainer.errors import ConfigError
from trainer.plan.activations import Settings, activation_bytes
from trainer.plan.advice import advise
from trainer.plan.batches import plan_batches, plan_steps
from trainer.plan.compute import Work, forward_flops, longest_work, training_flops
from trainer.plan.disk import teacher_columns, token_column
from trainer.plan.memory import RankMemory, host_bytes, rank_memory, way_of
from trainer.plan.plan import Options, make_plan
from trainer.plan.sizes import BackboneSize, TaskSize, bert_size, task_size
from trainer.recipes.load import from_settings

MB = 10**6
BERT_BASE = {
    "model.backbone.hidden_size": 768,
    "model.backbone.num_layers": 12,
    "model.backbone.num_heads": 12,
    "model.backbone.intermediate_size": 3072,
}
BERT_LARGE = {
    "model.backbone.hidden_size": 1024,
    "model.backbone.num_layers": 24,
    "model.backbone.num_heads": 16,
    "model.backbone.intermediate_size": 4096,
}


def config_of(**settings: object):
    given = {"task": "post_train", "data.articles": "x", "run.dir": "y"}
    return from_settings(
        given | {k.replace("__", "."): v for k, v in settings.items()}, where="test"
    )


def size_of(parameters: int, trained: int) -> TaskSize:
    """A model of so many parameters, all of them in the backbone."""
    backbone = BackboneSize(
        layers=1, width=8, heads=2, inner=16, layer_parameters=trained,
        other_parameters=parameters - trained, largest=MB,
    )  # fmt: skip
    return TaskSize(
        backbone=backbone, model=parameters, projections=0, trained_layers=1,
        trains_embeddings=parameters == trained, news_dim=8, query_dim=4,
    )  # fmt: skip


def zero(stage: int, **more: object) -> dict[str, object]:
    return {"zero_optimization": {"stage": stage, "reduce_bucket_size": MB, **more}}


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}

# 100 M parameters, all trained, over 4 ranks, buckets of 1 M: MB of weights, copy, gradients,
# moments, buffers (communication and stage 3's spare), gathered, host, update.
BY_HAND = {
    "ddp": (None, (400, 0, 400, 800, 400, 0, 0, 400)),
    "zero0": (zero(0), (400, 0, 400, 800, 400, 0, 0, 400)),
    "zero1": (zero(1), (400, 100, 500, 200, 4, 0, 0, 0)),
    "zero2": (zero(2), (400, 100, 100, 200, 4, 0, 0, 200)),
    "overlapping": (zero(2, overlap_comm=True), (400, 100, 100, 200, 8, 0, 0, 200)),
    "zero3": (
        zero(3, stage3_max_live_parameters=20 * MB),
        (100, 0, 100, 200, 104, 80, 0, 100),
    ),
    "zero2_offload": (zero(2, **OFFLOAD), (400, 0, 100, 0, 4, 0, 600, 0)),
    "zero3_offload": (
        zero(3, stage3_max_live_parameters=0, offload_param={"device": "cpu"}, **OFFLOAD),
        (0, 0, 100, 0, 4, 4, 600, 0),
    ),
    "zeropp": (
        zero(3, stage3_max_live_parameters=20 * MB, zero_hpz_partition_size=2),
        (300, 0, 100, 200, 104, 80, 0, 100),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_memory_by_hand(name: str) -> None:
    content, expected = BY_HAND[name]
    found = rank_memory(size_of(100 * MB, 100 * MB), way_of(name, content), 4)
    names = ("weights", "copy", "gradients", "moments", "buffers", "gathered", "host", "update")
    assert {n: getattr(found, n) / MB for n in names} == dict(zip(names, expected, strict=True))


def test_memory_of_a_model_that_is_trained_in_part_on_one_and_on_four_ranks() -> None:
    size = size_of(100 * MB, 20 * MB)
    one = rank_memory(size, way_of("ddp", None), 1)
    assert (one.weights, one.gradients, one.moments, one.buffers) == (
        400 * MB, 80 * MB, 160 * MB, 0
    )  # fmt: skip
    assert one.fixed == 720 * MB and one.peak(100 * MB) == 740 * MB
    amsgrad = rank_memory(size, way_of("zero2", zero(2)), 4, moments=3)
    assert (amsgrad.weights, amsgrad.copy, amsgrad.moments) == (400 * MB, 20 * MB, 60 * MB)
    offloaded = way_of("zero3_offload", zero(3, offload_param={"device": "cpu"}, **OFFLOAD))
    # copy, two moments, gradient of the update, accumulated gradient; and this rank's weights
    assert host_bytes(size, offloaded, 4) == (5 * 20 + 100) * MB


def test_parameters_of_bert_base_and_large() -> None:
    # Devlin et al. 2019 with their pooler: 110 M and 335 M (109,482,240 and 335,141,888 in the
    # published files); the pooler is D x D + D.
    base = bert_size(config_of(**BERT_BASE).model.backbone, 30522)
    large = bert_size(config_of(**BERT_LARGE).model.backbone, 30522)
    assert base.parameters == 109_482_240 - (768 * 768 + 768)
    assert large.parameters == 335_141_888 - (1024 * 1024 + 1024)


@pytest.mark.parametrize("task", ["post_train", "finetune"])
@pytest.mark.parametrize("trained", [None, 1])
def test_parameters_are_those_of_the_task_that_is_built(task: str, trained: int | None) -> None:
    from trainer.engine.optimizer import build_optimizer
    from trainer.models.build import build_news_encoder, build_recommender

    config = config_of(
        task=task,
        model__backbone__hidden_size=32, model__backbone__num_layers=2,
        model__backbone__intermediate_size=64, model__trainable_layers=trained,
        model__backbone__relative_position_bias=True,
        **({"model__user_encoder": "nrms", "data__clicks": "c"} if task == "finetune" else {}),
    )  # fmt: skip
    build = build_recommender if task == "finetune" else build_news_encoder
    model = build(config.model, vocab_size=100, pad_id=0)
    expected = task_size(config, bert_size(config.model.backbone, 100))
    assert expected.parameters == sum(p.numel() for p in model.parameters())
    groups = build_optimizer(model, config.optimizer).param_groups
    assert expected.trained == sum(p.numel() for group in groups for p in group["params"])


def test_parameters_of_a_language_model_in_a_folder_and_of_an_export(
    world: TinyWorld, tmp_path: Path
) -> None:
    from transformers import BertConfig

    from trainer.plan.meta import backbone_size

    folder = str(tmp_path / "lm")
    BertConfig(
        vocab_size=90, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=40, max_position_embeddings=30,
    ).save_pretrained(folder)  # fmt: skip
    model = config_of(model__backbone__name=folder, model__backbone__layers=[0, 2]).model
    found = backbone_size(model)
    layer = 4 * (16 * 16 + 16) + (16 * 40 + 40) + (40 * 16 + 16) + 4 * 16
    assert (found.layers, found.width, found.inner, found.heads) == (2, 16, 40, 2)
    assert found.layer_parameters == layer
    assert found.other_parameters == (90 + 30 + 2 + 2) * 16
    export = world.teacher("post_train", seed=1)
    config = world.config("post_train", model__init=export)
    vocab_size = world.tokens.vocab_size
    assert backbone_size(config.model).parameters == (
        bert_size(config.model.backbone, vocab_size).parameters
    )


def test_seconds_are_flops_over_what_all_ranks_reach(capsys) -> None:
    words = ["--tflops", "2", "--utilisation", "0.5", "--processes", "4", "--articles", "256"]
    assert main(["plan", "--json", *words, "post_train", "--run.global_batch", "128",
                 "--run.copies.rule", "none"]) == 0  # fmt: skip
    plan = json.loads(capsys.readouterr().out)["plans"][0]
    assert plan["steps"]["steps"] == 2
    assert plan["seconds"] == pytest.approx(plan["flops_a_step"] * 2 / (4 * 1e12))


def test_flops_by_hand() -> None:
    size = size_of(100, 100)  # D 8, F 16, E 8, Q 4, one layer
    work = Work(texts=2, tokens=9, slots=10, slots_squared=50)
    layer = 2 * 10 * (4 * 64 + 2 * 8 * 16) + 4 * 50 * 8
    head = 2 * 10 * 8 * 4 + 2 * 2 * 8 * 8
    assert forward_flops(size, work) == layer + head
    assert training_flops(size, work) == 3 * (layer + head)
    assert training_flops(size, work, is_checkpointed=True) == 4 * layer + 3 * head
    assert work.padding == pytest.approx(0.1)


def test_longest_micro_batch() -> None:
    config = config_of(run__micro_batch=4, run__global_batch=4)
    work = longest_work(config).mean  # 4 bodies of 512, 4 x (1 + 9) titles of 24
    assert (work.texts, work.slots) == (44, 4 * 512 + 40 * 24)
    assert work.slots_squared == 4 * 512**2 + 40 * 24**2


def test_activations_grow_with_slots_and_shrink_with_checkpointing() -> None:
    size = size_of(100, 100)
    full = Settings(has_dropout=False)
    # 8 D + 2 F values, statistics of two norms and of the softmax's heads; the pooling's own.
    assert activation_bytes(size, 10, 0, full) == 10 * (4 * (64 + 32) + 16 + 8 + 4 * 12 + 64)
    again = activation_bytes(size, 1000, 0, Settings(has_dropout=False, is_checkpointed=True))
    assert again == activation_bytes(size, 1000, 0, full) + 1000 * 4 * 8  # one layer alone


def test_batches_and_steps() -> None:
    config = config_of(run__global_batch=64, run__micro_batch=4, run__checkpoint_every=3)
    batches = plan_batches(config, 2, 4)
    assert batches.accumulation == 2 and batches.micro_batches == (1, 2, 4, 8)
    assert batches.line() == ("global batch 64 = 2 nodes x 4 ranks x micro-batch 4 x 2 accumulated")
    steps = plan_steps(config, 640)
    assert steps.steps == 10 and steps.checkpoints == (3, 6, 9, 10)
    with pytest.raises(ConfigError, match="global_batch"):
        plan_batches(config, 3, 1)


def test_columns_by_hand() -> None:
    shape = {"teachers": 4, "articles": 10, "impressions": 5, "candidates": 50, "width": 256}
    assert teacher_columns(1, **shape, dtype="float16") == 4 * 2 * 10 * 256 * 2
    assert teacher_columns(2, **shape, dtype="float32") == 4 * ((15 * 256 + 50) * 4 + 5 * 20)
    # int8: a scale in float32 a vector; scores in float16
    assert teacher_columns(2, **shape, dtype="int8") == 4 * (15 * (256 + 4) + 50 * 2 + 5 * 20)
    assert token_column(10, 100) == 10 * (200 + 16)


def test_advice_takes_the_quickest_way_that_fits() -> None:
    memories = {
        "ddp": RankMemory(weights=40, gradients=40),
        "zero2": RankMemory(weights=40, gradients=10),
        "zero3": RankMemory(weights=10, gradients=10),
    }

    def kept(micro_batch: int, is_checkpointed: bool) -> int:
        return micro_batch * (1 if is_checkpointed else 10)

    def chosen(room: int):
        found = advise(memories, kept, [1, 2, 4, 8, 16], room=room, is_checkpointed=False)
        return found.way, found.micro_batch, found.is_checkpointed

    assert chosen(240) == ("ddp", 16, False)
    assert chosen(100) == ("ddp", 2, False)
    assert chosen(70) == ("zero2", 2, False)
    assert chosen(40) == ("zero3", 2, False)
    assert chosen(22) == ("zero3", 2, True)
    assert chosen(21) == ("zero3", 1, True)
    assert chosen(20) == (None, 1, True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("plan"), num_articles=60)


def words_of(world: TinyWorld, **more: object) -> list[str]:
    given = TINY_MODEL | {"data.articles": world.articles.path, "run.dir": world.folder / "run"}
    given |= {key.replace("__", "."): value for key, value in more.items()}
    return [str(word) for key, value in given.items() for word in (f"--{key}", value)]


def test_plan_of_a_run_is_its_dry_run_and_more(world: TinyWorld, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [*words_of(world), "--run.micro_batch", "2", "--run.copies.rule", "none"]
    assert main(["train", "post_train", *words, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert main(["plan", "--processes", "2", "post_train", *words]) == 0
    said = capsys.readouterr().out
    batch = next(line for line in dry.splitlines() if line.startswith("# global batch"))
    assert batch.removeprefix("# ") in said
    assert "60 units x 1 epochs -> 8 optimizer steps" in said and "60 units x 1 epochs" in dry
    for name in ("ddp", "zero0", "zero1", "zero2", "zero3"):
        assert f"\n           {name} " in said
    assert "sample of" in said and "micro-batches evenly spaced over the first epoch" in said
    assert not (world.folder / "run").exists()


def test_sampled_tokens_are_those_that_the_set_stores(world: TinyWorld, capsys) -> None:
    """All 60 articles in one micro-batch: every body, and with 10 tokens at most every title."""
    import numpy as np

    from trainer.tasks.registry import open_sources

    size = {"run__global_batch": 60, "run__micro_batch": 60}
    words = [*words_of(world, **size), "--run.copies.rule", "none"]
    words += ["--data.in_batch_negatives", "true"]  # then no title is there twice
    assert main(["plan", "--json", "post_train", *words]) == 0
    work = json.loads(capsys.readouterr().out)["plans"][0]["micro"]["mean"]
    tokens = open_sources(world.config("post_train")).tokens
    rows = np.arange(60)
    titles = tokens.lengths("title", rows, 10)
    bodies = tokens.lengths("body", rows, 20)
    assert (work["texts"], work["tokens"]) == (120, int(titles.sum() + bodies.sum()))
    assert work["slots"] >= work["tokens"]


def test_memory_alone_needs_no_data(capsys, tmp_path: Path) -> None:
    words = [str(w) for key, value in BERT_BASE.items() for w in (f"--{key}", value)]
    words += ["--model.backbone.name", "random", "--model.trainable_layers", "None"]
    words += ["--run.global_batch", "128"]
    options = ["--json", "--processes", "4", "--gpu-gib", "16"]
    assert main(["plan", *options, "post_train", *words, "--run.dir", str(tmp_path / "r")]) == 0
    plan = json.loads(capsys.readouterr().out)["plans"][0]
    P = plan["size"]["parameters"]
    assert P == plan["size"]["trained"] == 109_242_513
    assert plan["memory"]["ddp"]["weights"] == 4 * P and plan["memory"]["ddp"]["moments"] == 8 * P
    assert plan["memory"]["zero3"]["weights"] == P
    assert plan["steps"] is None and plan["advice"]["way"] == "ddp"
    assert (
        plan["memory"]["ddp"]["peak"]
        == plan["memory"]["ddp"]["fixed"] + plan["activations"] - (plan["memory"]["ddp"]["update"])
    )
    assert not (tmp_path / "r").exists()


def test_sizes_that_are_told_stand_for_sets_that_are_not_built(capsys) -> None:
    words = ["--articles", "1000", "--impressions", "640", "finetune_distill"]
    words += ["--teachers.models", "a", "b", "--run.micro_batch", "32", "--run.global_batch", "32"]
    words += ["--model.backbone.name", "random", "--run.epochs", "1"]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert "640 units x 1 epochs -> 20 optimizer steps" in said
    held = 2 * ((1640 * 256 + 640 * 40) * 2 + 20 * 640)
    assert f"{held / 1e9:9.2f} GB  columns of 2 teachers, stage II (float16)" in said
    assert f"{1000 * (536 * 2 + 16) / 1e9:9.2f} GB  token column, at most" in said


def test_stored_logits_take_their_bytes_and_no_projections(capsys) -> None:
    words = ["--articles", "100000000", "--json", "post_train_distill"]
    words += ["--teachers.models", "a", "b", "--teachers.logits", "stored", "--run.epochs", "1.5"]
    items, parameters = {}, {}
    for embedding in (0, 1):
        assert main(["plan", *words, "--loss.embedding", str(embedding)]) == 0
        (plan,) = json.loads(capsys.readouterr().out)["plans"]
        items[embedding] = {item["what"]: item["bytes"] for item in plan["disk"]}
        parameters[embedding] = plan["size"]["projections"]
    held = items[0]["logits of 2 teachers in 2 epochs"]
    assert held == 2 * 2 * 100_000_000 * 10 * 2
    assert parameters == {0: 0, 1: 2 * (256 * 256 + 256)}


def test_every_training_step_of_a_pipeline_is_planned(capsys) -> None:
    template = Path(__file__).parents[2] / "launchers" / "templates" / "demo.yaml"
    assert main(["plan", str(template)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "step post-train: " in said and "give --articles" in said
    told = ["--articles", "2000", "--impressions", "3000"]
    assert main(["plan", "--json", *told, str(template)]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    names = [plan["name"] for plan in plans]
    assert names[:2] == ["post-train", "finetune-teacher-1"] and len(set(names)) == len(names)
    assert [plan["task"] for plan in plans].count("finetune_distill") >= 1
    assert plans[0]["steps"]["units"] == 2000 and plans[1]["steps"]["units"] == 3000
    assert any("does not exist yet" in note for note in plans[1]["notes"])
    assert main(["plan", *told, str(template), "--run.epochs", "1"]) == 2
    assert (
        "takes neither overrides nor a preset, but --run.epochs 1 is given"
        in capsys.readouterr().err
    )
    assert main(["plan", *told, "--preset", "released", str(template)]) == 2
    assert (
        "takes neither overrides nor a preset, but --preset released is given"
        in capsys.readouterr().err
    )


def test_a_mistake_in_a_pipeline_s_step_is_not_taken_for_a_missing_set(tmp_path, capsys) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("run: r\ndata: {synthesize: {}}\nset: {run.epoch: 2}\n")
    assert main(["plan", str(file)]) == 2
    said = capsys.readouterr().err
    assert "step post-train: " in said and "run.epoch" in said and "--articles" not in said


def test_a_second_copy_of_zeropp_is_planned_where_ranks_divide(tmp_path: Path) -> None:
    file = tmp_path / "groups.json"
    file.write_text(json.dumps(zero(3, zero_hpz_partition_size=4)))
    config = config_of(run__deepspeed=str(file), run__micro_batch=1)
    plan = make_plan(config, Options(processes=4), name="x", has_data=False)
    P = 4 * plan.size.parameters
    assert plan.chosen == "groups"
    assert plan.memory["groups"].weights == pytest.approx(P / 4 + P / 4, abs=8)
    assert plan.peak == plan.memory["groups"].peak(plan.activations)


def test_the_cache_of_a_set_elsewhere_takes_room(tmp_path: Path) -> None:
    config = config_of(
        data__articles="https://host/news", data__cache_dir=str(tmp_path), data__cache_gib=2
    )
    plan = make_plan(config, Options(), name="x", has_data=False)
    (cache,) = [item for item in plan.disk if "cache of sets" in item.what]
    assert (cache.bytes, cache.where) == (2 << 30, str(tmp_path))


def test_a_full_disk_is_said_before(world: TinyWorld, capsys, monkeypatch) -> None:
    import os

    real = os.statvfs
    monkeypatch.setattr(
        "trainer.plan.disk.os.statvfs",
        lambda path: os.statvfs_result([*real(path)[:2], 1000, 10, 10, *real(path)[5:]]),
    )
    assert main(["plan", "post_train", *words_of(world), "--run.copies.rule", "none"]) == 0
    assert "WARNING: the plan does not fit on the disk" in capsys.readouterr().out


def test_mistakes_are_one_line(world: TinyWorld, capsys) -> None:
    assert main(["plan", "--processes", "3", "post_train", *words_of(world)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run.global_batch" in said
