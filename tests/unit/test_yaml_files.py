"""YAML files of users: texts stay what was written, limits hold, every refusal is one line."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launchers.config import load_pipeline
from launchers.pipeline import pipeline_steps
from launchers.slurm import load_cluster
from trainer.config.yaml_files import MAX_DEPTH, MAX_VALUES, plain, read_yaml
from trainer.errors import ConfigError, TinyNewsRecError
from trainer.recipes.load import load_config

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def is_one_line(text: str) -> bool:
    return not {"Cc", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, text))


@pytest.mark.parametrize(
    "text",
    [
        "off",
        "on",
        "yes",
        "No",
        "0123",
        "1e-4",
        "1.10",
        "12:30",
        "2019-11-14",
        "1_000",
        "0x1F",
        "~x",
    ],
)
def test_a_setting_that_wants_text_gets_what_was_written(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"base: post_train\nrun: {{dir: {text}}}\ndata: {{articles: {text}}}\n")
    config = load_config(str(recipe))
    assert (config.run.dir, config.data.articles) == (text, text)
    cluster = tmp_path / "c.yaml"
    cluster.write_text(f"account: {text}\nmodules: [{text}]\nenv: {{N: {text}}}\n")
    found = load_cluster(cluster)
    assert (found.account, found.modules, dict(found.env)) == (text, (text,), {"N": text})


@pytest.mark.parametrize("text", ["off", "'off'", '"off"'])
def test_off_is_a_choice_where_it_is_one(tmp_path: Path, text: str) -> None:
    recipe, pipeline = tmp_path / "r.yaml", tmp_path / "p.yaml"
    recipe.write_text(f"base: finetune\nmodel: {{frozen_states: {text}}}\n")
    words = ["--data.articles", "a", "--data.clicks", "c", "--run.dir", "r"]
    assert load_config(str(recipe), words).model.frozen_states == "off"
    pipeline.write_text(
        f"run: r\ndata: {{synthesize: {{}}}}\nset: {{model: {{frozen_states: {text}}}}}\n"
    )
    (step,) = (s for s in pipeline_steps(load_pipeline(pipeline)) if s.name == "plain-teacher-s0")
    assert step.command[step.command.index("--model.frozen_states") + 1] == "off"


@pytest.mark.parametrize(
    ("text", "said"), [("yes", True), ("On", True), ("TRUE", True), ("no", False), ("off", False)]
)
def test_words_of_truth_are_one_where_the_schema_wants_it(tmp_path, text, said) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"base: post_train\noptimizer: {{amsgrad: {text}}}\n")
    needed = ["--data.articles", "a", "--run.dir", "r"]
    assert load_config(str(recipe), needed).optimizer.amsgrad is said
    assert load_config("post_train", [*needed, "--optimizer.amsgrad", text]).optimizer.amsgrad is (
        said
    )


def test_numbers_are_numbers_and_words_of_steps_stay_as_they_were(tmp_path: Path) -> None:
    recipe, pipeline = tmp_path / "r.yaml", tmp_path / "p.yaml"
    recipe.write_text(
        "base: post_train\nrun: {seed: 0012, max_steps: 10_000, copies: {rule: none}}\n"
        "optimizer: {lr: 1e-4, eps: .5, betas: [0.5, 1.0e-1]}\n"
    )
    config = load_config(str(recipe), ["--data.articles", "a", "--run.dir", "r"])
    assert (config.run.seed, config.run.max_steps) == (12, 10_000)
    assert (config.optimizer.lr, config.optimizer.eps) == (1e-4, 0.5)
    assert config.optimizer.betas == (0.5, 0.1)
    pipeline.write_text(
        "run: r\ndata: {synthesize: {gzip: yes, users: 010}}\n"
        "set: {optimizer.lr: 1.0e-3, optimizer.amsgrad: yes, model.trainable_layers: null}\n"
    )
    steps = pipeline_steps(load_pipeline(pipeline))
    assert steps[0].command[-3:] == ("--gzip", "--users", "010")
    words = " ".join(next(s for s in steps if s.name == "post-train").command)
    assert "--optimizer.lr 0.001 --optimizer.amsgrad true --model.trainable_layers null " in words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "line 1: a value contains itself"),
        ("a: &a {b: *a}", "line 1: a value contains itself"),
        (LAUGHS, f"more than {MAX_VALUES:,} values, the limit"),
        (f"a: [{'1,' * MAX_VALUES}]", f"more than {MAX_VALUES:,} values, the limit"),
        ("a: " + "[" * 100_000, f"more than {MAX_DEPTH} levels of nesting, the limit"),
        ("".join(f"{' ' * n}a:\n" for n in range(99)), f"more than {MAX_DEPTH} levels"),
        ("a: 1\n" * 250_000, "has 1,250,000 bytes; expected at most 1,048,576"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' comes twice"),
        ('a: "x\\ny"', "line 1: a value is 'x\\ny', which holds a line break"),
        ("a: |\n  x\n  y\n", "line 1: a value is 'x\\ny', which holds a line break"),
        ('"a\\e[1m": 1', "a value is 'a\\x1b[1m', which holds a control character"),
        ("a: !!int x", "line 1: 'x' is not a valid int"),
        ("a: !!timestamp x", "line 1: the tag 'tag:yaml.org,2002:timestamp' is not supported"),
        ("a: !!python/object/apply:os.system [x]", "is not supported"),
        ('a: "\\UFFFFFFFF"', "is not YAML"),
        ("a: b\n---\nc: d", "expected a single document"),
        ("- 1", "expected keys and values, found list"),
        ("off", "expected keys and values, found bool"),
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("load", [read_yaml, lambda path: load_config(str(path))])
def test_what_is_refused_is_one_line(tmp_path: Path, load, text: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    told = str(caught.value)
    assert said in told and "r.yaml" in told and told.isprintable() and len(told) < 600


@pytest.mark.parametrize("load", [read_yaml, load_cluster, load_pipeline, load_config])
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path, load) -> None:
    fifo = tmp_path / "r.yaml"
    os.mkfifo(fifo)
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for path in (fifo, tmp_path / "zero.yaml"):
        with pytest.raises(ConfigError, match="not a regular file"):
            load(str(path))
    for name in (str(tmp_path / "folder.yaml"), "a" * 5000 + ".yaml", "a\0b.yaml", "a\nb.yaml"):
        with pytest.raises(ConfigError) as caught:
            load(name)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: ''\ndata: {synthesize: {}}\n", "run is empty; give it a value"),
        ("run: r\ndata: {synthesize: {}, truth: ''}\n", "data.truth is empty; give it a value"),
        ("run: r\ndata: {articles_set: ''}\n", "data.articles_set is empty; give it a value"),
    ],
)
def test_a_folder_of_a_pipeline_is_not_empty(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_pipeline(path)


def test_anchors_and_merges_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: [off]}\nb: {<<: *a, x: 2}\n")
    assert plain(read_yaml(path)) == {"a": {"x": 1, "y": [False]}, "b": {"x": 2, "y": [False]}}


SCALARS = st.sampled_from(["off", "~", "1", "-1", "1e3", "", "x", '"\\n"', "9" * 40, "[]", "{}"])
KEYS = st.sampled_from(
    [
        *("run", "data", "set", "seeds", "teachers", "students", "stages", "cluster", "resources"),
        *("task", "base", "model", "optimizer", "synthesize", "count", "every", "steps", "name"),
        *("layers", "env", "finetune", "minutes", "seed", "copies", "rule", "dir", "?", "~"),
    ]
)
NODES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(KEYS, inner, max_size=4).map(
            lambda d: "{" + ", ".join(f"{key}: {value}" for key, value in d.items()) + "}"
        ),
    ),
    max_leaves=12,
)


def _load_all(path: Path) -> None:
    for load in (
        lambda: load_config(str(path), ["--data.articles", "a", "--run.dir", "r"]),
        lambda: pipeline_steps(load_pipeline(path)),
        lambda: load_cluster(path),
    ):
        try:
            load()
        except TinyNewsRecError as error:
            assert is_one_line(str(error)) and len(str(error)) < 2000


@settings(deadline=None, max_examples=150)
@given(text=st.one_of(NODES, st.text(max_size=60)))
def test_no_file_ends_in_a_traceback(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    _load_all(path)


WORDS = st.sampled_from(
    [
        *("--run.seed", "--run.dir=x", "--teachers.models", "--", "--=", "--task", "1", "-1", "x"),
        *("--optimizer.betas", "--run.max-steps", "nan", "off", "", "a\nb", "9" * 5000, "\udcff"),
        *("--model.backbone.layers", "--data.news_text", "--run.copies.rule", "title", "null"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(words=st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=8))
@example(words=["--task", "9" * 5000])
@example(words=["--model.pooling", "9" * 5000])
def test_no_command_line_ends_in_a_traceback(words: list[str]) -> None:
    try:
        load_config("post_train", words)
    except ConfigError as error:
        assert is_one_line(str(error)) and len(str(error)) < 2000
