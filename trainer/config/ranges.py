"""Allowed ranges of numeric settings, written in each setting's type.

``Count``, ``Length`` and the like are plain ``int`` and ``float`` except to :func:`check_ranges`,
which checks a whole configuration before anything is allocated.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from trainer.errors import ConfigError

MOST_INT, MOST_FLOAT = 2**31 - 1, 1e9
"""Largest number of a setting without a limit of its own: a count in 32 bits, and far below the
largest fp32 number."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The range of a setting."""

    least: float | None = None
    """Smallest allowed number."""
    above: float | None = None
    """Exclusive lower bound."""
    below: float | None = None
    """Exclusive upper bound."""
    most: float | None = None
    """Largest allowed number; None is :data:`MOST_INT` or :data:`MOST_FLOAT`."""

    def complaint(self, number: float) -> str | None:
        """Describe what was expected instead of a number; None if the number is allowed."""
        if self.least is not None and self.below is not None:
            is_inside = self.least <= number < self.below
            said = f"expected at least {self.least} and less than {self.below}"
            return None if is_inside else said
        if self.least is not None and not number >= self.least:
            return f"expected at least {self.least}"
        if self.above is not None and not number > self.above:
            return f"expected more than {self.above}"
        if isinstance(number, float) and not math.isfinite(number):
            return "expected a finite number"
        most = (
            (MOST_INT if isinstance(number, int) else MOST_FLOAT)
            if self.most is None
            else (self.most)
        )
        return f"expected at most {most}" if number > most else None


Count = Annotated[int, Limits(least=1)]
Whole = Annotated[int, Limits(least=0)]
Length = Annotated[int, Limits(least=3)]
"""Length of a text in tokens: at least two special tokens and one other."""
Positive = Annotated[float, Limits(above=0)]
NotNegative = Annotated[float, Limits(least=0)]
Share = Annotated[float, Limits(least=0, below=1)]


def check_ranges(section: Any, prefix: str = "") -> None:
    """Refuse numbers that are out of range, NaN included.

    Args:
        section: A configuration, or a section of a configuration.
        prefix: Prefix of the names of its settings.

    Raises:
        ConfigError: A number is out of range; names the first such setting, its value and the
            range.
    """
    for name, limits, number in _numbers(section, prefix):
        complaint = limits.complaint(number)
        if complaint is not None:
            raise ConfigError(f"{name} is {number}; {complaint}")


def numbers(section: Any) -> Iterator[tuple[str, int | float]]:
    """Yield all numbers of a section and its subsections by dotted name, tuples' items singly."""
    for name, _, number in _numbers(section, ""):
        yield name, number


def _numbers(section: Any, prefix: str) -> Iterator[tuple[str, Limits, int | float]]:
    hints = typing.get_type_hints(type(section), include_extras=True)
    for field in dataclasses.fields(section):
        name, value = f"{prefix}{field.name}", getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{name}.")
            continue
        limits = next(_limits(hints[field.name]), Limits())
        items = {name: value}
        if isinstance(value, tuple):
            items = {f"{name}[{place}]": item for place, item in enumerate(value)}
        for each, item in items.items():
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                yield each, limits, item


def _limits(hint: Any) -> Iterator[Limits]:
    """Yield the limits inside a type such as ``Count | None`` or ``tuple[Share, Share]``."""
    for inner in getattr(hint, "__metadata__", ()):
        if isinstance(inner, Limits):
            yield inner
    for inner in typing.get_args(hint):
        yield from _limits(inner)
