"""Options that several commands have: what follows a recipe (overrides, a preset), the device."""

import argparse


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``; the command asks :func:`trainer.hardware.pick_device` before it loads."""
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="auto (a GPU for each process if there are any), cpu, cuda, cuda:1 ... "
        "(default %(default)s)",
    )


def _device(text: str) -> str:
    from trainer.hardware import DEVICES, is_device

    if not is_device(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; expected {DEVICES}")
    return text


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the overrides, which take all words after the recipe, and ``--preset``.

    Args:
        parser: Of the command; its recipe is added before.
    """
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="--section.key value",
        help="settings over the recipe's; 'tnr train RECIPE --help' lists them",
    )
    parser.add_argument(
        "--preset",
        help="settings under the overrides: 'released' (released code), 'cpu' (faster on a CPU), "
        "'cpu_bf16' (on one with hardware for bf16)",
    )
    parser.set_defaults(show_help=parser.print_help)


def take_preset(arguments: argparse.Namespace, *, shows_help: bool = True) -> None:
    """Move a preset that stands behind the recipe from the overrides to ``arguments.preset``.

    Args:
        arguments: What was parsed.
        shows_help: Show the help of the command where the overrides ask for it.

    Raises:
        SystemExit: ``--help`` stands there: the command's help is shown.
    """
    words, arguments.overrides = iter(arguments.overrides), []
    for word in words:
        name, is_whole, value = word.partition("=")
        if name == "--preset":
            arguments.preset = value if is_whole else next(words, "")
        elif shows_help and word in ("--help", "-h"):
            arguments.show_help()
            raise SystemExit(0)
        else:
            arguments.overrides.append(word)
