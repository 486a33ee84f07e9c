"""Recipes, presets and overrides become one checked configuration."""

import json
from pathlib import Path

import pytest
import yaml

from trainer.config.flat import flatten, setting_types, to_dict
from trainer.config.validate import check_batch
from trainer.errors import ConfigError
from trainer.recipes.load import from_settings, load_config, read_recipe, recipe_names
from trainer.recipes.presets import COMMON, RELEASED
from trainer.tasks.registry import TASKS, task_named

NEEDED = ["--data.articles", "a", "--run.dir", "r"]


def test_overrides_win_over_the_preset_and_the_preset_over_the_recipe() -> None:
    assert load_config("post_train", NEEDED).run.copies.rule == "first_m"
    assert load_config("post_train", NEEDED, preset="released").run.copies.rule == "last_m"
    words = [*NEEDED, "--run.copies.rule=none"]
    assert load_config("post_train", words, preset="released").run.copies.rule == "none"


def test_recipes_follow_the_paper_and_the_preset_the_released_code() -> None:
    words = [*NEEDED, "--data.clicks", "c", "--teachers.models", "t"]
    paper = load_config("finetune_distill", words)
    assert (paper.loss.target, paper.loss.temperature_squared) == (1.0, True)
    assert not paper.loss.shared_projection
    released = load_config("finetune_distill", words, preset="released")
    assert (released.loss.target, released.loss.temperature_squared) == (0.2, False)
    assert released.loss.shared_projection and released.loss.padded_slots
    assert released.optimizer.amsgrad and released.data.static_negatives
    assert not released.model.pooling_mask


def test_a_preset_is_that_of_the_task_that_is_asked_for(tmp_path: Path) -> None:
    words = [*NEEDED, "--data.clicks", "c", "--task", "finetune"]
    assert load_config("post_train", words, preset="released").optimizer.amsgrad
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("run: {seed: 7}\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: no task; set it to one of post_train, "):
        load_config(str(recipe), NEEDED, preset="cpu")


def test_presets_for_cpus_drop_attention_dropout_alone() -> None:
    plain = load_config("post_train", NEEDED)
    for name, precision in (("cpu", "fp32"), ("cpu_bf16", "bf16")):
        config = load_config("post_train", NEEDED, preset=name)
        assert config.model.backbone.attention_dropout == 0.0
        assert config.model.backbone.hidden_dropout is plain.model.backbone.hidden_dropout
        assert config.run.precision == precision
        assert config.optimizer == plain.optimizer and config.data == plain.data


def test_every_setting_of_every_preset_exists() -> None:
    for task, settings in RELEASED.items():
        assert settings.keys() <= setting_types(task_named(task).config).keys()
    for name in TASKS:
        for settings in COMMON.values():
            assert settings.keys() <= setting_types(task_named(name).config).keys()


def test_configuration_survives_json() -> None:
    config = load_config("post_train", [*NEEDED, "--model.backbone.layers", "0", "2"])
    stored = json.loads(json.dumps(to_dict(config)))
    assert from_settings(flatten(stored), where="test") == config


def test_every_recipe_that_comes_along_parses() -> None:
    for name in recipe_names():
        assert read_recipe(name)["task"]


def test_a_recipe_holds_only_what_differs_from_its_base(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: finetune\nrun: {seed: 7}\n")
    config = load_config(str(recipe), [*NEEDED, "--data.clicks", "c"])
    assert (config.run.seed, config.data.num_negatives) == (7, 4)


def test_a_recipe_s_suffix_may_be_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "Base.YML").write_text("base: finetune\nrun: {seed: 7}\n")
    recipe = tmp_path / "mine.YAML"
    recipe.write_text("base: Base.YML\ndata: {num_negatives: 2}\n")
    found = read_recipe(str(recipe))
    assert (found["run.seed"], found["data.num_negatives"]) == (7, 2)
    with pytest.raises(ConfigError, match=r"no recipe '.*no\.Yaml' \(.*no\.Yaml is not a file\)"):
        read_recipe(str(tmp_path / "no.Yaml"))


def test_a_base_by_path_is_looked_up_beside_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base.yaml").write_text("base: finetune\nrun: {seed: 7}\n")
    mine, other = tmp_path / "mine.yaml", tmp_path / "shared" / "other.yaml"
    mine.write_text("base: shared/base.yaml\n")
    assert read_recipe(str(mine))["run.seed"] == 7
    mine.write_text("base: shared/other.yaml\n")
    other.write_text("base: ../mine.yaml\n")
    with pytest.raises(ConfigError, match="its bases form a circle"):
        read_recipe(str(mine))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run.sed", "3"], "did you mean run.seed?"),
        (["--run.copies", "3"], "'run.copies' is a section, not a setting; its settings are run."),
        (["--run", "3"], "run.dir, run.seed, "),
        (["--run.seed", "x"], "run.seed"),
        (["--model.pooling", "max"], "'attention', 'mean', 'cls'"),
        (["stray"], "stray"),
        (["--data.pad_to_max", "maybe"], "maybe"),
        (["--run.global_batch", "31"], "31"),
        (["--data.num_negatives", "0"], "at least 1"),
        (["--teachers.models", "t"], "command line: task post_train does not read teachers.models"),
        (["--run.copies.rule", "list"], "run.copies.steps"),
        (["--model.backbone.hidden_size", "130"], "130"),
        (["--optimizer.lr", "nan"], "more than 0"),
        (["--optimizer.backbone_lr", "-0.01"], "optimizer.backbone_lr is -0.01; expected more"),
        (["--optimizer.max_grad_norm", "-1"], "optimizer.max_grad_norm is -1.0; expected more"),
        (["--optimizer.max_grad_norm", "0"], "optimizer.max_grad_norm is 0.0; expected more"),
        (
            ["--optimizer.betas", "0.9", "1.0"],
            "optimizer.betas[1] is 1.0; expected at least 0 and less",
        ),
        (["--optimizer.betas", "-0.1", "0.9"], "optimizer.betas[0] is -0.1"),
        (["--model.backbone.hidden_dropout", "3"], "hidden_dropout is 3.0; expected at least 0"),
        (["--model.backbone.attention_dropout", "nan"], "attention_dropout is nan"),
        (["--model.backbone.num_heads", "0"], "model.backbone.num_heads is 0; expected at least 1"),
        (["--model.backbone.num_layers", "0"], "model.backbone.num_layers is 0"),
        (["--model.backbone.hidden_size", "0"], "model.backbone.hidden_size is 0"),
        (["--model.backbone.intermediate_size", "0"], "model.backbone.intermediate_size is 0"),
        (["--model.query_dim", "0"], "model.query_dim is 0"),
        (["--model.news_dim", "0"], "model.news_dim is 0"),
        (["--run.dir", ""], "run.dir is not set"),
        (["--run.dir="], "run.dir is not set"),
        (["--data.articles", ""], "data.articles is not set"),
        (["--data.cache_dir", ""], "command line: data.cache_dir is empty; give it a value"),
        (["--model.init="], "command line: model.init is empty"),
        (["--model.backbone.name", ""], "command line: model.backbone.name is empty"),
        (["--run.deepspeed", ""], "command line: run.deepspeed is empty"),
        (["--data.cache_dir", "s3://b/c"], "data.cache_dir is s3://b/c; expected a folder here"),
        (["--data.cache_dir", "s3://I:K@b/c"], "data.cache_dir is s3://***@b/c; expected a folder"),
        (["--run.dir", "https://h/r?token=K"], "run.dir is https://h/r?***; expected a folder"),
    ],
)
def test_mistakes_are_one_line_that_names_the_setting(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("post_train", [*NEEDED, *words])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_layers", "2"),
        ("num_layers", "4"),  # the default
        ("hidden_size", "64"),
        ("num_heads", "2"),
        ("intermediate_size", "64"),
        ("max_positions", "600"),
    ],
)
def test_sizes_are_for_random_backbones(tmp_path: Path, name: str, value: str) -> None:
    sizes, pretrained = [f"--model.backbone.{name}", value], ["--model.backbone.name", "some/bert"]
    load_config("post_train", [*NEEDED, *sizes])
    with pytest.raises(
        ConfigError, match=f"^command line: model.backbone.{name} is {value}, .* some/bert"
    ):
        load_config("post_train", [*NEEDED, *sizes, *pretrained])
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"base: post_train\nmodel: {{backbone: {{{name}: {int(value) + 4}}}}}\n")
    with pytest.raises(ConfigError, match=f"{name} is {int(value) + 4}, .*: leave it out"):
        load_config(str(recipe), [*NEEDED, *pretrained])


def test_what_a_dry_run_printed_is_a_recipe_of_a_backbone_that_exists(tmp_path: Path) -> None:
    config = load_config("post_train", [*NEEDED, "--model.backbone.name", "some/bert"])
    recipe = tmp_path / "printed.yaml"
    recipe.write_text(yaml.safe_dump(json.loads(json.dumps(to_dict(config)))))
    assert load_config(str(recipe)) == config


def test_an_unknown_recipe_suggests_a_name() -> None:
    with pytest.raises(ConfigError, match="did you mean post_train"):
        load_config("post_trian", NEEDED)


def test_accumulation_is_derived_and_its_arithmetic_shown() -> None:
    config = load_config(
        "post_train", [*NEEDED, "--run.global_batch", "24", "--run.micro_batch", "4"]
    )
    assert check_batch(config, world_size=3) == 2
    with pytest.raises(
        ConfigError,
        match=r"24 is not a multiple of 4 ranks x run.micro_batch 4 = 16; take run.global_batch 32"
        r" or run.micro_batch 3$",
    ):
        check_batch(config, world_size=4)
    with pytest.raises(ConfigError, match=r"5 ranks .* = 20; take run.global_batch 40$"):
        check_batch(config, world_size=5)


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ("post_train", ["--data.static-negatives", "true"], "data.static_negatives contradict"),
        ("post_train", ["--data.in-batch-negatives", "true"], "data.in_batch_negatives contradict"),
        ("finetune", ["--data.clicks", "c"], "task finetune does not read data.negatives_from"),
    ],
)
def test_negatives_from_the_window_are_for_post_training_alone(task, more, said) -> None:
    words = ["--data.articles", "a", "--run.dir", "r", "--data.negatives-from", "window"]
    with pytest.raises(ConfigError, match=said):
        load_config(task, [*words, *more])


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ("finetune", ["--data.user-block", "0"], "at least 1"),
        (
            "finetune",
            ["--data.share-titles", "all", "--model.history-padding", "learned"],
            "data.share_titles all is not possible while empty history slots are encoded",
        ),
        (
            "finetune",
            ["--data.share-titles", "auto", "--model.pooling-mask", "false"],
            "set data.pad_to_max",
        ),
    ],
)
def test_what_clicks_share_is_for_the_click_tasks_and_for_settled_vectors(task, more, said):
    words = ["--data.articles", "a", "--data.clicks", "c", "--run.dir", "r"]
    words += ["--teachers.models", "t"] if task.endswith("distill") else []
    with pytest.raises(ConfigError, match=said):
        load_config(task, [*words, *more])


def test_a_wrong_value_is_blamed_on_where_it_was_given_last(tmp_path: Path, monkeypatch) -> None:
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("base: post_train\nrun: {seed: x}\noptimizer: {lr: -1}\n")
    mine.write_text("base: base.yaml\nrun: {log_every: 0}\n")
    fine = [*NEEDED, "--run.seed", "1", "--optimizer.lr", "1", "--run.log_every", "1"]
    load_config(str(mine), fine)
    monkeypatch.setitem(COMMON, "bad", {"run.epochs": "many"})

    def said(*words: str, preset: str | None = None) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(str(mine), [*fine, *words], preset=preset)
        return str(caught.value)

    assert said("--run.seed", "y") == "command line: run.seed is 'y'; expected a whole number"
    assert said("--optimizer.betas", "x", "1").startswith("command line: optimizer.betas is ['x'")
    assert said("--optimizer.lr", "0") == "command line: optimizer.lr is 0.0; expected more than 0"
    assert said("--run.micro_batch", "5").startswith("command line: run.global_batch 32 is not")
    assert said(preset="bad") == "preset bad: run.epochs is 'many'; expected a number"
    with pytest.raises(ConfigError, match=f"^recipe {base}: run.seed is 'x'; expected a whole"):
        load_config(str(mine), NEEDED)
    with pytest.raises(ConfigError, match=f"^recipe {base}: optimizer.lr is -1.0"):
        load_config(str(mine), [*NEEDED, "--run.seed", "1", "--run.log_every", "1"])
    with pytest.raises(ConfigError, match=f"^recipe {mine}: run.log_every is 0"):
        load_config(str(mine), [*NEEDED, "--run.seed", "1", "--optimizer.lr", "1"])
    with pytest.raises(ConfigError, match=r"^run\.dir is not set"):
        load_config("post_train", ["--data.articles", "a"])


def test_a_section_without_lines_is_empty_and_a_setting_is_given_once(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: post_train\nmodel:\n  # news_dim: 3\nrun: {copies: }\n")
    load_config(str(mine), NEEDED)
    mine.write_text("base: post_train\nrun: {seed: 3}\nrun.seed: 4\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: run\.seed is set twice"):
        load_config(str(mine), NEEDED)


def test_one_teacher_of_a_recipe_is_one_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: finetune_distill\nteachers: {models: runs/a}\n")
    assert read_recipe(str(mine))["teachers.models"] == ["runs/a"]


def test_bases_have_a_limit(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    with pytest.raises(ConfigError, match="has more than 16 bases"):
        read_recipe(str(tmp_path / "0.yaml"))


CLICKS = ["--data.articles", "a", "--data.clicks", "c", "--run.dir", "r"]
TEACHER = ["--teachers.models", "t"]


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("post_train", ["--run.dir", "r"], "data.articles is not set"),
        ("post_train", ["--data.articles", "a"], "run.dir is not set"),
        ("finetune", NEEDED, "data.clicks is not set"),
        (
            "finetune",
            [*CLICKS, "--data.in_batch_negatives", "true"],
            "task finetune does not read data.in_batch_negatives, a setting of post_train: leave",
        ),
        ("post_train_distill", NEEDED, "teachers.models is empty"),
        (
            "post_train",
            [*NEEDED, "--data.share_titles", "auto"],
            "does not read data.share_titles, a setting of finetune and finetune_distill",
        ),
        (
            "finetune_distill",
            [*CLICKS, *TEACHER, "--data.share_titles", "auto", "--loss.padded_slots", "true"],
            r"empty history slots are encoded \(loss.padded_slots true\)",
        ),
        (
            "post_train",
            [*NEEDED, "--data.clicks_until", "2019-11-14"],
            "not read data.clicks_until",
        ),
        ("post_train", [*NEEDED, "--validation.clicks", "c"], "not read validation.clicks"),
        ("finetune", [*CLICKS, "--model.user_encoder", "nrms", "--model.user_heads", "0"], "is 0"),
        (
            "finetune_distill",
            [*CLICKS, *TEACHER, ""],
            "command line: teachers.models is empty",
        ),
        ("finetune", [*CLICKS, "--data.clicks_since", "soon"], "data.clicks_since is 'soon'"),
        ("finetune", [*CLICKS, "--validation.patience", "3"], "validation.patience is set, but"),
        ("finetune", [*CLICKS, "--validation.max_impressions", "9"], "max_impressions is set, but"),
        (
            "finetune",
            [*CLICKS, "--validation.clicks", "d", "--run.best_metric", "train/loss"],
            "picks its best step by valid/auc",
        ),
        (
            "post_train",
            [*NEEDED, "--run.checkpoint_every", "100", "--run.keep_every", "150"],
            "run.keep_every 150 is not a multiple of run.checkpoint_every 100",
        ),
        (
            "post_train",
            [*NEEDED, "--model.backbone.name", "random", "--model.backbone.max_positions", "511"],
            "data.max_body_tokens 512 makes texts of up to 512 tokens",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_named(task, words, said) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(task, words)
    assert "\n" not in str(caught.value)


def test_settings_at_their_bounds_are_taken() -> None:
    random = ["--model.backbone.name", "random"]
    load_config("post_train", [*NEEDED, *random, "--model.backbone.max_positions", "512"])
    last = ["--model.user_encoder", "last_k_mean", "--model.user_last_k", "9"]
    load_config("finetune", [*CLICKS, *last, "--data.history_length", "9"])
    load_config("post_train", [*NEEDED, "--run.checkpoint_every", "50", "--run.keep_every", "150"])
    # Joined fields share the special token at the start: 30 + 512 - 1.
    joined = ["--data.news_text", "title", "body", "--model.backbone.max_positions", "541"]
    load_config("finetune", [*CLICKS, *random, *joined])
    # Shared titles without a mask do where everything is padded alike.
    alike = ["--model.pooling_mask", "false", "--data.pad_to_max", "true"]
    load_config("finetune", [*CLICKS, "--data.share_titles", "auto", *alike])


def test_a_list_is_given_once_and_of_other_settings_the_last_counts() -> None:
    words = [*NEEDED, "--run.seed", "1", "--run.seed", "2"]
    assert load_config("post_train", words).run.seed == 2
    twice = ["--teachers.models", "a", "--teachers.models", "b"]
    with pytest.raises(ConfigError, match=r"^command line: teachers\.models is given twice"):
        load_config("post_train_distill", [*NEEDED, *twice])
