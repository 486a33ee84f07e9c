"""What a run takes over from the export that it starts from, and what it refuses to change."""

from pathlib import Path

import pytest
from helpers.exports import rewrite
from helpers.world import TinyWorld, make_world

from trainer.config.schema import TrainConfig
from trainer.errors import DamageError, ModelError
from trainer.recipes.load import load_config
from trainer.tasks.build import build

SHAPE = {"model__pooling": "mean", "model__news_dim": 20, "model__pooling_mask": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"), 12, 12)


@pytest.fixture(scope="module")
def post_trained(world: TinyWorld) -> str:
    return world.teacher("post_train", 1, model__query_dim=6, data__pad_to_max=True)


@pytest.fixture(scope="module")
def finetuned(world: TinyWorld) -> str:
    heads = {"model__user_encoder": "nrms", "model__user_heads": 4, "data__history_length": 7}
    return world.teacher("finetune", 2, **heads, **SHAPE)


def load(world: TinyWorld, task: str, init: str, *words: str, recipe: str = "") -> TrainConfig:
    needed = ["--data.articles", str(world.articles.path), "--run.dir", str(world.folder / "r")]
    needed += ["--model.init", init]
    if task != "post_train":
        needed += ["--data.clicks", str(world.impressions.path)]
    return load_config(recipe or task, [*needed, *words])


def test_an_export_decides_what_nobody_set(world: TinyWorld, post_trained: str) -> None:
    config = load(world, "finetune", post_trained)
    assert (config.model.pooling, config.model.news_dim, config.model.query_dim) == (
        "attention", 12, 6
    )  # fmt: skip
    # Over the recipe's own 30, which the column of these tokens does not even store.
    assert (config.data.max_title_tokens, config.data.max_body_tokens) == (10, 20)
    assert config.data.pad_to_max
    assert config.data.history_length == 50  # a post-trained model knows of no history
    built = build(config)
    assert built.module.model.config.news_config.news_dim == 12


def test_a_recommender_decides_about_users_too(world: TinyWorld, finetuned: str) -> None:
    config = load(world, "finetune", finetuned)
    model = config.model
    assert (model.pooling, model.pooling_mask, model.news_dim) == ("mean", False, 20)
    assert (model.user_encoder, model.user_heads, model.query_dim) == ("nrms", 4, 8)
    assert config.data.history_length == 7
    build(config)
    # A task without users takes what it reads.
    again = load(world, "post_train", finetuned, "--data.max_body_tokens", "20")
    assert again.model.news_dim == 20 and not hasattr(again.model, "user_encoder")


def test_what_is_set_by_hand_stays(world: TinyWorld, post_trained: str, tmp_path: Path) -> None:
    assert load(world, "finetune", post_trained, "--model.news_dim", "16").model.news_dim == 16
    lengths = load(world, "finetune", post_trained, "--data.max_title_tokens", "9")
    assert lengths.data.max_title_tokens == 9
    build(lengths)
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: finetune\nmodel: {news_dim: 256}\n")
    assert load(world, "", post_trained, recipe=str(mine)).model.news_dim == 256
    mine.write_text("base: finetune\nrun: {seed: 3}\n")
    assert load(world, "", post_trained, recipe=str(mine)).data.max_title_tokens == 10


@pytest.mark.parametrize(
    ("key", "value"), [("news_dim", "256"), ("query_dim", "200"), ("pooling", "cls")]
)
def test_a_shape_that_is_set_by_hand_to_something_else_is_refused(
    key: str, value: str, world: TinyWorld, post_trained: str
) -> None:
    """Also where the value is the schema's default: it was asked for."""
    config = load(world, "finetune", post_trained, f"--model.{key}", value)
    with pytest.raises(ModelError, match=rf"model\.{key} is '?{value}'?, but .* leave .*{key} out"):
        build(config)


def test_heads_of_an_export_cannot_be_changed(world: TinyWorld, finetuned: str) -> None:
    """They change no shape: the weights would load, and mean something else."""
    config = load(world, "finetune", finetuned, "--model.user_heads", "5")
    with pytest.raises(ModelError, match=r"model\.user_heads is 5, but .* was made with 4"):
        build(config)


def test_an_export_that_is_not_there_yet_decides_nothing(world: TinyWorld) -> None:
    config = load(world, "finetune", str(world.folder / "later"))
    assert (config.model.news_dim, config.data.max_title_tokens) == (256, 30)
    with pytest.raises(ModelError, match="there is no exported model"):
        build(config)


@pytest.mark.parametrize(
    ("file", "content"),
    [("tnr.json", '{"max_title_tokens": "ten"}'), ("tnr.json", "[" * 99_999), ("config.json", "[]"),
     ("config.json", '{"news_encoder": {"news_dim": "wide"}}')],
)  # fmt: skip
def test_an_edited_export_is_refused_in_one_line(
    file: str, content: str, world: TinyWorld, post_trained: str, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("tnr.json", "config.json"):
        (folder / name).write_bytes((Path(post_trained) / name).read_bytes())
    (folder / file).write_text(content)
    with pytest.raises(DamageError, match=file):
        load(world, "finetune", str(folder))


def test_an_entry_that_was_taken_out_is_named(world: TinyWorld, tmp_path: Path) -> None:
    folder = Path(world.teacher("post_train", 3))
    rewrite(folder, lambda info: info.pop("tokenizer_sha256"))
    with pytest.raises(ModelError, match="no entry 'tokenizer_sha256'"):
        build(load(world, "finetune", str(folder)))
