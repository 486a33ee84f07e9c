"""A user's mistake is one clear line and exit code 1 or 2, never a traceback."""

from pathlib import Path

import pytest
from helpers.exports import rewrite
from helpers.sets import make_articles
from helpers.world import TINY_MODEL, TinyWorld, make_world

from trainer.cli.main import main
from trainer.teacher_server.fill import FillRequest, fill


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("mistakes"))


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    lines = capsys.readouterr().err.strip().splitlines()
    told = [line for line in lines if line.startswith("tnr: error: ")]
    assert len(told) == 1 and "Traceback" not in "\n".join(lines), lines
    return code, told[0]


def train_words(world: TinyWorld, recipe: str, **settings: object) -> list[object]:
    given = {
        **TINY_MODEL,
        "data.articles": world.articles.path,
        "run.dir": world.folder / "run",
        "run.max_steps": 1,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    return [
        "train",
        recipe,
        *(word for key, value in given.items() for word in (f"--{key}", value)),
    ]


def test_a_missing_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, told = complaint(
        capsys, "shards", "build", "--articles", tmp_path / "none.jsonl", "--out", tmp_path / "set"
    )
    assert code == 1 and "none.jsonl" in told
    assert not (tmp_path / "set").exists()


def test_a_wrong_column(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = tmp_path / "news.csv"
    source.write_text("key,headline,text\n1,A title,A body\n")
    code, told = complaint(
        capsys, "shards", "build", "--articles", source, "--out", tmp_path / "set"
    )
    assert code == 1 and "--id-field" in told and "headline" in told


def test_a_folder_that_is_no_shard_set(
    capsys: pytest.CaptureFixture[str], world: TinyWorld, tmp_path: Path
) -> None:
    code, told = complaint(capsys, *train_words(world, "post_train", data__articles=tmp_path))
    assert code == 1 and str(tmp_path) in told


def test_a_wrong_recipe_key(
    capsys: pytest.CaptureFixture[str], world: TinyWorld, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: post_train\nrun: {sed: 3}\n")
    code, told = complaint(capsys, *train_words(world, str(recipe)))
    assert code == 2 and "run.seed" in told and "mine.yaml" in told


def test_a_tokenizer_that_does_not_match_the_columns(
    capsys: pytest.CaptureFixture[str], world: TinyWorld
) -> None:
    teacher = Path(world.teacher("post_train", seed=0))
    rewrite(teacher, lambda info: info.update(tokenizer_sha256="0" * 64))
    code, told = complaint(capsys, *train_words(world, "post_train", model__init=teacher))
    assert code == 1 and "tokenizer" in told and "tnr shards tokenize" in told


def test_a_teacher_column_of_another_fingerprint(
    capsys: pytest.CaptureFixture[str], world: TinyWorld
) -> None:
    teacher, other = (world.teacher("post_train", seed=seed) for seed in (1, 2))
    fill([teacher], FillRequest(articles=world.articles, impressions=None), lambda line: None)
    code, told = complaint(
        capsys, *train_words(world, "post_train_distill", teachers__models=other)
    )
    assert code == 1 and "teacher_weights_sha256" in told and "tnr teachers cache" in told


def test_clicks_over_other_articles(
    capsys: pytest.CaptureFixture[str], world: TinyWorld, tmp_path: Path
) -> None:
    from helpers.sets import make_tokens

    others = make_articles(tmp_path / "others", 30)
    make_tokens(others, tmp_path / "tokenizer")
    words = train_words(
        world, "finetune", data__articles=others.path, data__clicks=world.impressions.path
    )
    code, told = complaint(capsys, *words)
    assert code == 2 and "other articles" in told


@pytest.mark.parametrize("words", [[], ["fly"], ["train"], ["shards"], ["teachers", "cache"]])
def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, _ = complaint(capsys, *words)
    assert code == 2
