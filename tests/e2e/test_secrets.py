"""A key in a location is never printed and never written, whatever command it is given to."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.cli.main import build_parser, main

KEY = "S3CRETxyz"
LOCATIONS = (
    f"s3://ID:{KEY}/{KEY}@bucket/news",
    f"https://user:{KEY}@127.0.0.1:9/news",
    f"gs://bucket/news?token={KEY}",
    f"HTTPS://127.0.0.1:9/news?X-Amz-Signature={KEY}#{KEY}",
    f"zip://in.csv::https://user:{KEY}@127.0.0.1:9/news.zip",
)


def leaves(
    parser: argparse.ArgumentParser, verbs: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command with its parser."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield verbs, parser
    for action in below:
        for name, inner in action.choices.items():
            yield from leaves(inner, (*verbs, name))


def takes_text(action: argparse.Action) -> bool:
    kinds = (argparse._HelpAction, argparse._SubParsersAction)
    return not isinstance(action, kinds) and action.nargs != 0 and not action.choices


def filled(action: argparse.Action) -> str:
    if action.choices:
        return str(next(iter(action.choices)))
    return "1" if action.type in (int, float) else "none"


def words_with(
    verbs: tuple[str, ...], parser: argparse.ArgumentParser, planted: argparse.Action, value: str
) -> list[str]:
    """A command line with the location as the value of one argument, and what else it must have."""
    options, places = [], []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.dest == "overrides":
            continue
        given = value if action is planted else filled(action)
        if action.option_strings and (action.required or action is planted):
            options += [action.option_strings[0], given]
        elif not action.option_strings and (action.nargs not in ("*", "?") or action is planted):
            places.append(given)
    return [*verbs, *places, *options]


CASES = [
    pytest.param(verbs, action.dest, id=f"{' '.join(verbs)} {action.dest}")
    for verbs, parser in leaves(build_parser())
    for action in parser._actions
    if takes_text(action) and action.dest != "overrides" and verbs != ("demo",)
]


def run(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """All that a command prints; it fails, as there is nothing at the location."""
    with contextlib.suppress(SystemExit):
        main(words)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out + err


def written(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = "\n".join(str(path) for path in folder.rglob("*"))
    return names + "\n".join(path.read_bytes().decode("latin-1") for path in files)


@pytest.mark.parametrize(("verbs", "dest"), CASES)
def test_a_key_in_an_argument_is_not_printed(
    verbs: tuple[str, ...],
    dest: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = dict(leaves(build_parser()))[verbs]
    action = next(action for action in parser._actions if action.dest == dest)
    for location in LOCATIONS:
        said = run(words_with(verbs, parser, action, location), capfd)
        assert KEY not in said, said
    assert KEY not in written(tmp_path)


SETTINGS = (
    *("data.articles", "data.clicks", "data.cache_dir", "data.tokens", "model.init"),
    *("model.backbone.name", "teachers.models", "run.dir", "run.deepspeed", "validation.clicks"),
)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_key_in_a_setting_is_not_printed(
    setting: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line and in a recipe, before anything is written."""
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    for location in LOCATIONS[:3]:
        given = [f"--{setting}", location, *([] if setting == "run.dir" else ["--run.dir", "run"])]
        for verb in (["train"], ["launch", "slurm", "--print"], ["plan"]):
            said = run([*verb, "finetune", *given], capfd)
            assert KEY not in said, (verb, said)
        said = run(["train", "finetune", *given, "--dry-run"], capfd)
        assert KEY not in said, said
        section, _, key = setting.rpartition(".")
        nested = f"base: finetune\n{section}.{key}: '{location}'\n"
        recipe.write_text(nested)
        said = run(["train", str(recipe), "--run.dir", "run"], capfd)
        assert KEY not in said, said
        recipe.unlink()
    assert KEY not in written(tmp_path)


@pytest.mark.parametrize("verb", ["run", "submit", "status"])
def test_a_key_in_a_pipeline_is_not_printed(
    verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for location in LOCATIONS:
        for place in (
            "run: {}",
            "run: r\ndata: {{articles_set: {}}}",
            "stages: {{finetune: {{set: {{data.articles: {}}}}}}}",
        ):
            pipeline = tmp_path / "pipeline.yaml"
            pipeline.write_text(place.format(f"'{location}'") + "\n")
            said = run(
                ["pipeline", verb, str(pipeline), *(["--print"] if verb == "submit" else [])], capfd
            )
            assert KEY not in said, said
            pipeline.unlink()
    assert KEY not in written(tmp_path)
