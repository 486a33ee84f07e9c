"""Numbers on the command line: none is NaN, infinite or larger than what 64 bits hold."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.world import TINY_MODEL, TinyWorld, make_world

from shards.numbers import real, seed, whole
from trainer.cli.ending import exit_code_of
from trainer.cli.main import build_parser, main
from trainer.plan.batches import plan_batches
from trainer.recipes.load import from_settings

LONG = "1" + "0" * 5000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every option of a command and of its verbs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from options(child)
        else:
            yield parser.prog, action


def test_every_number_of_every_command_has_limits() -> None:
    found = list(options(build_parser()))
    assert not [(prog, one.dest) for prog, one in found if one.type in (int, float)]
    kinds = [one.type for _, one in found if callable(one.type)]
    taken = [kind for kind in kinds if getattr(kind, "__module__", "") == "shards.numbers"]
    assert len(taken) > 40
    for parse in taken:
        for text in ("nan", "inf", "-inf", LONG, "1e308", "x", ""):
            with pytest.raises(argparse.ArgumentTypeError) as refused:
                parse(text)
            assert len(str(refused.value)) < 150


@pytest.mark.parametrize(
    ("parse", "good", "bad", "said"),
    [
        (whole(1, 9), ["1", "9"], ["0", "1.5"], "is not a whole number from 1 to 9"),
        (whole(1, 9), ["9"], ["10", "1" * 30], "is more than 9"),
        (whole(0), ["0", str(2**31 - 1)], ["-1", "x"], "is not a whole number from 0 on"),
        (whole(), ["-5"], [str(2**31)], "is more than 2147483647"),
        (seed, [str(2**63 - 1)], [str(2**63)], "is more than 9223372036854775807"),
        (seed, ["0"], ["-1"], "is not a whole number from 0 on"),
        (real(0, 1), ["0", "1e-3", "1"], ["-1e-9", "1.1"], "is not a finite number from 0 to 1"),
        (real(most=9, above=0), ["1e-9", "9"], ["0", "10"], "finite number above 0 and at most 9"),
        (real(above=0), ["1"], ["0", "-1"], "is not a finite number above 0"),
    ],
)
def test_limits(parse, good: list[str], bad: list[str], said: str) -> None:
    for text in good:
        assert parse(text) == type(parse(text))(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError) as refused:
            parse(text)
        assert str(refused.value).startswith(repr(text)) and said in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        ["--gpu-gib", "inf"],
        ["--gpu-gib", "nan"],
        ["--tflops", "0"],
        ["--tflops", "1e-320"],
        ["--utilisation", "-1"],
        ["--impressions", "-1"],
        ["--processes", LONG],
    ],
)
def test_a_plan_refuses_numbers_that_nothing_has(given: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *given, "post_train"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"tnr: error: argument {given[0]}: ") and err.count("\n") == 1


@pytest.mark.parametrize("option", ["--seed", "--speed-seconds", "--batch-tokens"])
def test_an_evaluation_refuses_negative_numbers(option: str, capsys) -> None:
    words = ["evaluate", "--baseline", "random", "--articles", "a", "--clicks", "c", option, "-1"]
    with pytest.raises(SystemExit):
        main(words)
    assert f"argument {option}: '-1' is not" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.seed", "model.backbone.layers", "run.max_steps"])
def test_a_whole_number_beyond_all_floats_is_refused(
    name: str, world: TinyWorld, tmp_path: Path, capsys
) -> None:
    given = TINY_MODEL | {"data.articles": world.articles.path, "run.dir": tmp_path / "run"}
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["train", "post_train", *words, f"--{name}", "1" + "0" * 400]) == 2
    err = capsys.readouterr().err
    assert name in err and "expected at most" in err and err.count("\n") == 1


def test_the_divisors_of_a_huge_batch_are_found_at_once() -> None:
    given = {"task": "post_train", "data.articles": "a", "run.dir": "r", "run.micro_batch": 1}
    small = from_settings(given | {"run.global_batch": 36}, where="test")
    assert plan_batches(small, 1, 1).micro_batches == (1, 2, 3, 4, 6, 9, 12, 18, 36)
    huge = from_settings(given | {"run.global_batch": 2**30}, where="test")
    assert plan_batches(huge, 1, 1).micro_batches == tuple(2**n for n in range(31))


def numpy_refuses() -> None:
    raise MemoryError("Unable to allocate 128. GiB for an array")


def torch_refuses() -> None:
    torch.empty(1 << 55)


@pytest.mark.parametrize("command", [numpy_refuses, torch_refuses])
def test_memory_that_is_not_there_is_one_line(command, capsys) -> None:
    assert exit_code_of(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("tnr: error: not enough memory: ") and err.count("\n") == 1


def test_other_errors_of_the_program_are_raised() -> None:
    def fails() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        exit_code_of(fails)
