"""``tnr``: one command; every verb is a module that registers its parser and imports heavy things
late."""

from trainer import interrupt  # before anything that takes time: Ctrl-C is answered from here on

# isort: split
import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from trainer.environment import prepare
from trainer.errors import EXIT_DONE, EXIT_USAGE, TinyNewsRecError

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
    """argparse, with the project's one-line errors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print the mistake and where to read on, then exit 2."""
        self.exit(EXIT_USAGE, f"tnr: error: {message}; see '{self.prog} --help'\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command, with all verbs."""
    parser = _Parser(
        prog="tnr",
        description=(
            "Distil large language models into small, fast news encoders for recommendation."
        ),
        epilog="exit codes: 0 done, 1 failed, 2 usage, 75 stopped with a checkpoint, start again",
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module, _ in VERBS:
        importlib.import_module(module).register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; mistakes of the user print one line, no
    traceback."""
    prepare()
    arguments = build_parser().parse_args(argv)
    interrupt.set_running(True)
    try:
        code = arguments.run(arguments) or EXIT_DONE
        sys.stdout.flush()  # so that a closed pipe is met here, not in the interpreter's teardown
        return code
    except TinyNewsRecError as error:
        print(f"tnr: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Who read the output has ended, as in `tnr runs | head`; the command may have done half.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        interrupt.set_running(False)  # once more ends at once
        print("tnr: interrupted", file=sys.stderr)
        return interrupt.EXIT_INTERRUPTED
    finally:
        interrupt.set_running(False)


def entry() -> NoReturn:
    """The ``tnr`` of the shell: :func:`main`, then the end of the process."""
    code = main()
    engine = sys.modules.get("trainer.engine.distributed")
    if engine is not None:
        engine.leave(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
