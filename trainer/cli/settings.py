"""Options that several commands share: overrides and preset after a recipe, the device."""

import argparse


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``; the command calls :func:`trainer.hardware.pick_device` before it loads."""
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        help=(
            "auto (one GPU per process if there are any), cpu, cuda, cuda:1 ... (default "
            "%(default)s)"
        ),
    )


def _device(text: str) -> str:
    from trainer.hardware import DEVICES, is_device

    if not is_device(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; expected {DEVICES}")
    return text


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the overrides, which take all words after the recipe, and ``--preset``.

    Args:
        parser: Parser of the command; must already have the recipe.
    """
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="--section.key value",
        help="settings that override the recipe's; 'tnr train RECIPE --help' lists them",
    )
    parser.add_argument(
        "--preset",
        help=(
            "preset below the overrides: 'released' (as in the released code), 'cpu' (faster on "
            "a CPU), 'cpu_bf16' (for a CPU with bf16 hardware)"
        ),
    )
    parser.set_defaults(show_help=parser.print_help)


def take_preset(arguments: argparse.Namespace, *, shows_help: bool = True) -> None:
    """Move a preset after the recipe from the overrides to ``arguments.preset``.

    Args:
        arguments: Parsed arguments.
        shows_help: Whether ``--help`` among the overrides shows the command's help.

    Raises:
        SystemExit: The help was shown.
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
