"""Numbers that no run can have: refused by name, before anything is built."""

import math
import typing

import pytest

from trainer.cli.main import main
from trainer.config.flat import flatten, setting_types, to_dict
from trainer.config.parts import settings_of_parts
from trainer.config.ranges import numbers
from trainer.config.schema import CopiesConfig, TrainConfig
from trainer.config.validate import check_memory, validate
from trainer.engine.copies import copy_steps
from trainer.errors import ConfigError
from trainer.recipes.load import from_settings
from trainer.tasks.registry import TASKS, settings_read, task_named

GIB = 2**30


def numeric(wanted: type) -> list[tuple[str, str]]:
    """Tasks and settings of theirs that take an int or a float, alone or among others."""
    found: dict[str, str] = {}
    for task in TASKS:
        for name, kind in settings_read(task_named(task).config).items():
            parts = {kind, *typing.get_args(kind)}
            is_float = float in parts
            if is_float if wanted is float else (int in parts and not is_float):
                found[name] = task
    return [(task, name) for name, task in found.items()]


def config(task: str = "post_train", **dotted: object) -> TrainConfig:
    given: dict[str, object] = {"task": task, "data.articles": "a", "run.dir": "r"}
    types = setting_types(task_named(task).config)
    needed = {"data.clicks": "c", "teachers.models": ["t"]}
    given |= {key: value for key, value in needed.items() if key in types}
    settings = {key.replace("__", "."): value for key, value in dotted.items()}
    parts = settings_of_parts(task_named(task).config)
    given |= {parts[key][0]: parts[key][1][0] for key in settings if key in parts}
    return from_settings(given | settings, where="test")


@pytest.mark.parametrize("task", TASKS)
def test_every_number_is_looked_at(task: str) -> None:
    seen = {name.partition("[")[0] for name, _ in numbers(config(task))}
    flat = flatten(to_dict(config(task)))
    for _, name in (*numeric(int), *numeric(float)):
        if name in flat:
            assert name in seen or flat[name] is None or flat[name] == (), name


def words(name: str, value: object) -> dict[str, object]:
    pair = name == "optimizer.betas"
    return {name.replace(".", "__"): (value, 0.9) if pair else value}


@pytest.mark.parametrize(("task", "name"), numeric(float))
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e300"])
def test_floats_that_are_not_finite_or_huge_are_refused_by_name(task, name, value) -> None:
    with pytest.raises(ConfigError, match=name) as refused:
        validate(config(task, **words(name, value)))
    assert "\n" not in str(refused.value)
    if value == "inf" and name != "optimizer.betas":
        assert "less than 1" in str(refused.value) or "finite" in str(refused.value)


@pytest.mark.parametrize(("task", "name"), numeric(int))
def test_huge_whole_numbers_are_refused_by_name(task: str, name: str) -> None:
    with pytest.raises(ConfigError, match=name) as refused:
        validate(config(task, **words(name, 2**64)))
    assert "\n" not in str(refused.value)


def test_the_largest_seed_is_that_of_torch() -> None:
    validate(config(run__seed=2**63 - 1))
    with pytest.raises(ConfigError, match=rf"run.seed is {2**63}; expected at most {2**63 - 1}"):
        validate(config(run__seed=2**63))


def test_what_runs_have_passes() -> None:
    validate(config(run__epochs=100_000, run__hang_timeout_s=1e6, optimizer__lr=10.0))


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ({"model__backbone__hidden_size": 2**20}, r"hidden_size 1048576"),
        (
            {"model__backbone__num_layers": 4096, "model__backbone__hidden_size": 8192},
            r"num_layers 4096, hidden_size 8192",
        ),
        ({"model__backbone__max_positions": 2**24}, r"max_positions 16777216"),
        ({"model__news_dim": 2**20, "model__query_dim": 2**20}, r"news_dim 1048576"),
        ({"run__micro_batch": 2**30, "run__global_batch": 2**30}, r"run.micro_batch 1073741824"),
        ({"data__num_negatives": 2**31 - 1}, r"data.num_negatives 2147483647"),
    ],
)
def test_sizes_beyond_the_machine_are_refused_with_the_sum(dotted, said) -> None:
    wanted = config(**dotted)
    validate(wanted)  # some machine may hold it: a plan can be made
    with pytest.raises(ConfigError, match=rf"GiB, and this machine has 8 GiB .*: lower .*{said}"):
        check_memory(wanted, 8 * GIB)


def test_usual_sizes_fit_a_small_machine() -> None:
    check_memory(config(), 2 * GIB)
    check_memory(config("finetune"), 2 * GIB)
    large = {"num_layers": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096}
    check_memory(config(**{f"model__backbone__{k}": v for k, v in large.items()}), 4 * GIB)


def test_training_refuses_them_before_anything_is_opened(tmp_path, capsys) -> None:
    settings = ["--data.articles", str(tmp_path / "no"), "--run.dir", str(tmp_path / "run")]
    size = ["--model.backbone.hidden_size", str(2**20), "--model.backbone.num_layers", "4096"]
    assert main(["train", "post_train", *settings, *size]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tnr: error: the model takes at least")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_with_too_many_copies_is_refused_before_they_are_counted_out() -> None:
    copies = CopiesConfig(rule="every_k", every=1)
    with pytest.raises(ConfigError, match="keeps 1000000000000 copies"):
        copy_steps(copies, 10**12)
    last = CopiesConfig(rule="last_m", every=500, count=3)
    assert copy_steps(last, 10**12 + 1) == [10**12 - 500, 10**12, 10**12 + 1]
    assert math.isfinite(len(copy_steps(CopiesConfig(rule="first_m", every=1, count=4), 10**12)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("shards train-tokenizer s --out t --vocab-size 99999999999999", "--vocab-size"),
        ("shards train-tokenizer s --out t --character-coverage nan", "--character-coverage"),
        ("shards tokenize s --tokenizer t --title-tokens 99999999999999", "--title-tokens"),
        ("shards show s 99999999999999", "ROW"),
        ("shards build --articles a --out s --max-refused inf", "--max-refused"),
        (f"evaluate m --articles a --clicks c --seed {2**63}", "--seed"),
        (f"demo --seeds 0 {2**63}", "--seeds"),
        ("launch slurm --minutes 99999999999 post_train", "--minutes"),
    ],
)
def test_options_of_every_command_take_no_such_numbers(words: str, said: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    told = capsys.readouterr()
    assert said in told.err and ("is more than " in told.err or " is not a " in told.err)
    assert len(told.err.splitlines()) == 1 and told.out == ""


def test_seeds_of_options_are_as_large_as_those_of_settings(tmp_path, capsys) -> None:
    sets = ["--articles", str(tmp_path), "--clicks", str(tmp_path)]
    assert main(["evaluate", str(tmp_path), *sets, "--seed", str(2**63 - 1)]) != 0
    assert "--seed" not in capsys.readouterr().err
