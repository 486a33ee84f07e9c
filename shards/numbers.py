"""Parse numbers of the command line within limits; refuse others in one line.

Every option that takes a number has one of these functions as its ``type``, so that no number is
NaN, infinite, or too large for the libraries that keep it.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

MOST_WHOLE = 2**31 - 1
MOST_SEED = 2**63 - 1
MOST_REAL = 1e15
"""Largest numbers of options without own limits: libraries keep sizes in 32 bits and seeds in 64;
no measured quantity exceeds this in any unit."""

_SHOWN = 40  # characters of a value that a message repeats


def whole(least: int = -MOST_WHOLE, most: int = MOST_WHOLE) -> Callable[[str], int]:
    """Make the ``type`` of an option that takes a whole number.

    Args:
        least: Smallest allowed.
        most: Largest allowed.
    """

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None  # not a number, or more digits than Python reads
        if number is not None and number > most:
            raise ArgumentTypeError(f"{_short(text)} is more than {most}")
        if number is None or number < least:
            expected = "a whole number" + _limits(least, most, MOST_WHOLE)
            raise ArgumentTypeError(f"{_short(text)} is not {expected}")
        return number

    return parse


seed = whole(0, MOST_SEED)
"""The ``type`` of an option that takes a seed."""


def real(
    least: float = -MOST_REAL, most: float = MOST_REAL, *, above: float | None = None
) -> Callable[[str], float]:
    """Make the ``type`` of an option that takes a finite number.

    Args:
        least: Smallest allowed.
        most: Largest allowed.
        above: Exclusive lower limit; None sets no such limit.
    """

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most or (above is not None and not number > above):
            limits = _limits(least, most, MOST_REAL)
            if above is not None:
                limits = f" above {above:g}{f' and at most {most:g}' if most < MOST_REAL else ''}"
            raise ArgumentTypeError(f"{_short(text)} is not a finite number{limits}")
        return number

    return parse


def _limits(least: float, most: float, widest: float) -> str:
    if least == -widest:
        return f" of at most {_digits(most)}"
    if most >= widest:
        return f" from {_digits(least)} on"
    return f" from {_digits(least)} to {_digits(most)}"


def _digits(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
