"""The column of frozen states: whose it is, who fills it, what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.world import TinyWorld, make_world

from shards.cells import write_cell
from shards.columns import ColumnReader, list_columns
from trainer.cli.main import main
from trainer.config.validate import validate
from trainer.engine.signals import StopRequest
from trainer.errors import ColumnError, ConfigError, DataError, ModelError, StopForRequeue
from trainer.frozen import fill, texts
from trainer.frozen.column import FROZEN
from trainer.frozen.states import StateView
from trainer.plan.data import told
from trainer.plan.frozen import frozen_column
from trainer.tasks.build import BuiltTask, build
from trainer.tasks.finetune.clicks import news_texts
from trainer.tasks.registry import open_sources
from trainer.teacher_server import cells

TEXTS, SHARDS = 40, 3
SETTINGS: dict[str, Any] = {
    "model__frozen_states": "float32",
    "model__backbone__num_layers": 3,
    "model__trainable_layers": 1,
}


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    return make_world(tmp_path, TEXTS)


def built(world: TinyWorld, seed: int = 4, **changes: Any) -> BuiltTask:
    """A finetuning task from the column, three layers of which one is trained."""
    torch.manual_seed(seed)
    return build(world.config("finetune", **SETTINGS | changes))


def columns(world: TinyWorld) -> list[str]:
    return [info.folder.name for info in list_columns(world.articles, FROZEN)]


def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of texts of every cell that is computed from now on."""
    counted: list[int] = []
    compute = fill.StateFiller._tensors

    def tensors(self: fill.StateFiller, rows: np.ndarray, count: Any) -> Any:
        counted.append(len(rows))
        return compute(self, rows, count)

    monkeypatch.setattr(fill.StateFiller, "_tensors", tensors)
    return counted


def test_layers_above_play_no_part_in_whose_column_it_is(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = Path(world.teacher("finetune", 1, model__backbone__num_layers=3))
    first = built(world, model__init=str(teacher))
    assert len(columns(world)) == 1
    counted = computed(monkeypatch)
    # Another teacher: the same frozen layers, others above, another dropout, number of layers.
    with torch.no_grad():
        for parameter in first.module.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    other = teacher.with_name("other")
    first.export(first.module.model, other, {})
    capsys.readouterr()
    built(world, model__init=str(other), model__backbone__hidden_dropout=0.3)
    student = {"model__backbone__layers": (0, 1), "model__trainable_layers": 0}
    built(world, model__init=str(teacher), **student)
    built(world, model__init=str(teacher), run__precision="fp16")
    assert counted == [] and len(columns(world)) == 1
    assert "frozen layers" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 5}, "frozen_weights_sha256 is '[0-9a-f]+' in the column"),
        ({"model__trainable_layers": 2}, "frozen_layers is 2 in the column, asked for 1"),
        ({"data__max_title_tokens": 8}, r"max_tokens is \[10\] in the column, asked for \[8\]"),
        ({"model__frozen_states": "float16"}, "dtype is 'float32' in the column"),
        ({"run__precision": "bf16"}, "compute is 'fp32' in the column, asked for 'bf16'"),
    ],
)
def test_a_column_of_something_else_is_named_and_another_made(
    world: TinyWorld, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], field: str
) -> None:
    built(world)
    assert "nearest" not in capsys.readouterr().err
    built(world, **changes)
    assert re.search(f"nearest column there differs: .*{field}", capsys.readouterr().err)
    assert len(columns(world)) == 2


@pytest.mark.parametrize(
    "frozen",
    [
        "embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.output.LayerNorm.weight",
        "rel_pos_bias.weight",
    ],
)
def test_any_frozen_weight_makes_another_column(world: TinyWorld, frozen: str) -> None:
    biased = {"model__backbone__relative_position_bias": True}
    folder = Path(world.teacher("finetune", 1, model__backbone__num_layers=3, **biased))
    first = built(world, model__init=str(folder))
    with torch.no_grad():
        for name, parameter in first.module.model.named_parameters():
            if name.endswith(frozen):
                parameter.view(-1)[-1].add_(1e-6)
    other = folder.with_name("other")
    first.export(first.module.model, other, {})
    built(world, model__init=str(other))
    assert len(columns(world)) == 2


def test_a_run_goes_on_only_from_the_same_states(world: TinyWorld) -> None:
    """The column is a part of what the data of a run are."""
    first, again, other = built(world), built(world), built(world, seed=5)
    assert first.data.fingerprint == again.data.fingerprint != other.data.fingerprint
    assert "frozen_states:" in first.data.fingerprint


def test_states_are_laid_out_as_ids_are(world: TinyWorld) -> None:
    task = built(world)
    ids = build(world.config("finetune", data__max_title_tokens=10)).data.news
    states: StateView = task.data.states
    rows = np.array([7, 3, 3, 39, 0, 21])
    assert states.lengths(rows).tolist() == ids.lengths(rows).tolist()
    whole, mask = states.batch(rows)
    assert np.array_equal(mask, ids.batch(rows)[1])
    assert (whole[mask == 0] == 0).all() and (whole[mask == 1] != 0).any(axis=1).all()
    for budget, exactly in ((24, None), (24, 9), (1000, None)):
        groups, expected = (one.groups(rows, budget, exactly) for one in (states, ids))
        assert len(groups) == len(expected)
        for group, other in zip(groups, expected, strict=True):
            assert np.array_equal(group.places, other.places)
            assert np.array_equal(group.mask, other.mask)
            length = group.mask.shape[1]
            assert np.array_equal(group.states, whole[group.places, :length])
    assert states.groups(rows[:0], 24) == []


def test_ranks_share_the_cells_and_none_waits_for_another(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 does its share; then rank 0 does its own, and what a rank 2 that is gone has left."""
    for name, value in {"WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    counted = computed(monkeypatch)
    helped = fill.StateFiller._help
    monkeypatch.setattr(fill.StateFiller, "_help", lambda self, writer, cells: None)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ColumnError, match="not complete"):
        built(world)
    assert len(counted) == 1
    monkeypatch.setattr(fill.StateFiller, "_help", helped)
    monkeypatch.setenv("RANK", "0")
    task = built(world)
    assert sorted(counted) == [8, 16, 16]
    at_once = built(make_world(world.folder / "alone", TEXTS))
    rows = np.arange(TEXTS)
    assert np.array_equal(task.data.states.batch(rows)[0], at_once.data.states.batch(rows)[0])


def test_a_fill_that_was_stopped_goes_on_where_it_was(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = computed(monkeypatch)

    def check(self: StopRequest, left_s: float = 0.0) -> None:
        if len(counted) == 2:
            raise StopForRequeue("stopped by SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "check", check)
        with pytest.raises(StopForRequeue, match=r"SIGTERM: 2 of 3 cells .* are left") as stopped:
            built(world)
    assert stopped.value.exit_code == 75
    counted.clear()
    built(world)
    assert len(counted) == 2


def test_a_full_disk_is_seen_before_anything_is_computed(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "free_bytes", lambda folder: 10)
    with pytest.raises(DataError, match=r"still to be written .* 0\.0 MB are free; make room"):
        built(world)
    assert columns(world) == []


def test_the_size_that_is_told_is_that_of_the_files(world: TinyWorld) -> None:
    task = built(world)
    config = world.config("finetune", model__frozen_states="float32")
    item = frozen_column(config, 16, open_sources(config), None)
    assert item is not None
    lengths = news_texts(config, world.tokens).lengths(np.arange(TEXTS))
    assert f"({lengths.sum()} tokens x 16 x 4 bytes" in item.what
    files = task.data.states.reader.folder.glob("*.safetensors")
    on_disk = sum(path.stat().st_size for path in files)
    assert item.bytes < on_disk < item.bytes + SHARDS * 2048
    guess = frozen_column(config, 16, None, told(1000, 10))
    assert guess is not None and guess.bytes == 1000 * (10 * 16 * 4 + 8)


def test_dry_run_and_plan_tell_the_size(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--data.articles", world.articles.path, "--data.clicks"]
    words += [world.impressions.path, "--run.dir", world.folder / "run"]
    words += ["--model.frozen_states", "float16", "--model.trainable_layers", 2]
    words += ["--data.max_title_tokens", 12]
    told_size = r"MB in \S+columns: column of frozen .* tokens x 128 x 2 bytes"
    assert main([*map(str, ["train", *words]), "--dry-run"]) == 0
    assert re.search(told_size, capsys.readouterr().out)
    assert main([*map(str, ["plan", *words])]) == 0
    assert re.search(r"disk .* column of frozen .* tokens x 128 x 2 bytes", capsys.readouterr().out)
    assert columns(world) == []


def _change_a_state(view: StateView) -> None:
    """As good a file as any, with another state in it."""
    tensors = {name: array.copy() for name, array in view.reader.cell(0).items()}
    tensors["states.values"][:] += 1.0
    info = view.reader.shard_set.manifest.shards[0]
    write_cell(view.reader.folder, view.reader.fingerprint, info, tensors)


def _cut_a_text(view: StateView) -> None:
    """The texts of the last shard, in another order."""
    shard = view.reader.shard_set.num_shards - 1
    cell = view.reader.cell(shard)
    lengths = np.diff(cell["states.offsets"])[::-1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    info = view.reader.shard_set.manifest.shards[shard]
    tensors = {"states.values": cell["states.values"].copy(), "states.offsets": offsets}
    write_cell(view.reader.folder, view.reader.fingerprint, info, tensors)


@pytest.mark.parametrize("damage", [_change_a_state, _cut_a_text])
def test_states_that_are_not_the_models_are_refused(
    world: TinyWorld, damage: Callable[[StateView], None]
) -> None:
    damage(built(world).data.states)
    with pytest.raises(
        ModelError, match=r"--remove frozen-states-\w+ --yes` removes it, and it is"
    ):
        built(world)


def test_a_state_beyond_float16_is_refused_by_row(world: TinyWorld) -> None:
    huge = built(world)
    with torch.no_grad():
        for layer in huge.module.model.news_encoder.backbone.language_model.encoder.layer:
            layer.output.LayerNorm.weight.fill_(1e6)
    folder = world.folder / "huge"
    huge.export(huge.module.model, folder, {})
    with pytest.raises(ColumnError, match=r"states.values \(float16\) is not finite in 16 rows: 0"):
        built(world, model__init=str(folder), model__frozen_states="float16")
    built(world, model__init=str(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__trainable_layers": None}, "model.trainable_layers is not set, so every layer"),
        ({"model__trainable_layers": 3}, "freezes none of the backbone's 3 layers"),
        ({"model__backbone__layers": (0,)}, "freezes none of the backbone's 1 layers"),
        ({"data__pad_to_max": True}, "data.pad_to_max true causes padding"),
        ({"model__pooling_mask": False}, "model.pooling_mask false causes padding"),
        ({"model__history_padding": "learned"}, "model.history_padding learned causes padding"),
    ],
)
def test_settings_that_contradict_it_are_named(
    world: TinyWorld, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"model.frozen_states is float32, but .*{said}"):
        validate(world.config("finetune", **SETTINGS | changes))


def test_slots_that_the_distillation_pads_are_not_stored(world: TinyWorld) -> None:
    padded = SETTINGS | {"loss__padded_slots": True, "teachers__models": ["t"]}
    with pytest.raises(ConfigError, match=r"loss\.padded_slots true causes padding"):
        validate(world.config("finetune_distill", **padded))


def test_it_is_for_click_tasks_and_for_layers_that_are_there(world: TinyWorld) -> None:
    with pytest.raises(ConfigError, match=r"task post_train does not read model\.frozen_states"):
        world.config("post_train", **SETTINGS | {"model__frozen_states": "float16"})
    teacher = world.teacher("finetune", 1)
    with pytest.raises(ConfigError, match="freezes none of the backbone's 2 layers"):
        built(world, model__init=teacher, model__trainable_layers=2)


def test_a_whole_frozen_backbone_is_its_last_states(world: TinyWorld) -> None:
    task = built(world, model__trainable_layers=0)
    encoder = task.module.model.news_encoder
    assert encoder.backbone.split.num_below == 3
    ids, mask = (torch.from_numpy(array) for array in task.data.news.batch(np.arange(9)))
    with torch.no_grad():
        last = encoder.eval().backbone(ids, mask.bool())
    states = task.data.states.batch(np.arange(9))[0]
    np.testing.assert_allclose(states[mask == 1], last[mask == 1].numpy(), atol=1e-6)


def test_columns_of_an_older_set_are_left_alone(world: TinyWorld) -> None:
    """What a set was rebuilt from has other rows; its column is no part of the new one."""
    task = built(world)
    with pytest.raises(ColumnError, match=r"run `tnr train RECIPE --model.frozen_states TYPE`"):
        ColumnReader.open(world.articles, FROZEN, {"format": 0})
    assert task.data.states.reader.made_from["shard_set"] == world.articles.fingerprint
    assert texts.compute_of(world.config("finetune", run__precision="bf16")) == "bf16"
