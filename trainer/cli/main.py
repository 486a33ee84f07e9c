"""``tnr``: the main command.

Each verb is a module that registers its parser and imports heavy modules late.
"""

from trainer import interrupt  # first, so that Ctrl-C is handled from here on

# isort: split
import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from shards.errors import one_line
from shards.location import is_elsewhere, shown_text
from trainer.cli.ending import exit_code_of, name_standard_streams
from trainer.environment import prepare
from trainer.errors import EXIT_USAGE, UsageError

VERBS = (
    ("trainer.cli.demo", "demo"),
    ("shards.cli", "shards"),
    ("trainer.cli.convert", "convert"),
    ("trainer.cli.train", "train"),
    ("trainer.cli.launch", "launch"),
    ("trainer.cli.teachers", "teachers"),
    ("trainer.cli.evaluate", "evaluate"),
    ("trainer.cli.predict", "predict"),
    ("trainer.cli.score", "score"),
    ("trainer.cli.recommend", "recommend"),
    ("trainer.cli.export", "export"),
    ("trainer.cli.pipeline", "pipeline"),
    ("trainer.cli.plan", "plan"),
    ("trainer.cli.preflight", "preflight"),
    ("trainer.cli.runs", "runs"),
    ("trainer.cli.report", "report"),
)
"""Modules with ``register(subparsers)``, in the order of ``tnr --help``."""


class _Parser(argparse.ArgumentParser):
    """An argument parser with the project's one-line errors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print the error and the command that shows the help, then exit with code 2."""
        self.exit(
            EXIT_USAGE, f"tnr: error: {shown_text(one_line(message))}; see '{self.prog} --help'\n"
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; report unknown arguments by the verb's own parser, which names its help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Return an option's value; refuse an empty one, as from an unset variable.

        As a path, an empty value would mean the working directory.
        """
        if "" in arg_strings and action.nargs not in (argparse.PARSER, argparse.REMAINDER):
            raise argparse.ArgumentError(action, "expected a value, found an empty one")
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the help; unlike argparse, raise an error if printing fails."""
        if message:
            (file or sys.stderr).write(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command, with all verbs."""
    parser = _Parser(
        prog="tnr",
        description=(
            "Distil large language models into small, fast news encoders for recommendation."
        ),
        epilog=(
            "exit codes: 0 done, 1 failed, 2 usage, 75 stopped with the work so far kept: run "
            "the same command again, 130 and 143 interrupted"
        ),
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module, _ in VERBS:
        importlib.import_module(module).register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; user errors print one line."""
    prepare()
    name_standard_streams()
    return exit_code_of(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int | None:
    arguments = build_parser().parse_args(argv)
    interrupt.set_running(True)
    for option in ("out", "plot"):
        if is_elsewhere(place := getattr(arguments, option, None)):
            raise UsageError(f"--{option} {place}: expected a path on this machine, not a URL")
    code: int | None = arguments.run(arguments)
    return code


def entry() -> NoReturn:
    """Run ``tnr`` from a shell: call :func:`main`, then end the process."""
    interrupt.watch(signal.SIGTERM)
    code = main()
    engine = sys.modules.get("trainer.engine.distributed")
    if engine is not None:
        engine.leave(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
