"""The list of planted faults: read from TOML tables, one table a module.

::

    ["shards/order.py"]
    tests = "tests/unit/test_order.py"
    faults = [
      ["what is wrong", 'old text', 'new text'],
      ["what is wrong", 'old text', 'new text', "other tests"],
    ]

``tests`` are words for pytest: files, and perhaps ``-k`` with an expression. The old text stands in
the module exactly once.
"""

import ast
import functools
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLES = Path(__file__).parent / "faults"


class StaleList(Exception):
    """A fault of the list does not fit the checkout any more."""


@dataclass(frozen=True)
class Fault:
    """One change of one module that its tests should notice."""

    module: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """What reports call the fault."""
        return f"{self.module}: {self.what}"

    @property
    def test_files(self) -> list[str]:
        """Files among the words for pytest."""
        return [word.partition("::")[0] for word in self.tests if word.startswith("tests/")]

    def planted(self, root: Path) -> str:
        """Return the module's text with the fault.

        Raises:
            StaleList: The old text does not stand there exactly once, the text with the fault is
                not Python or is the same program, or a test file is missing.
        """
        text = (root / self.module).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise StaleList(
                f"{self.name}: the old text stands there {text.count(self.old)} times, expected "
                f"once; change the list: {self.old!r}"
            )
        for file in self.test_files:
            if not (root / file).is_file():
                raise StaleList(f"{self.name}: there is no {file}; change the list")
        planted = text.replace(self.old, self.new)
        try:
            is_same = ast.dump(ast.parse(planted)) == _program(text)
        except SyntaxError as error:
            raise StaleList(f"{self.name}: the text with the fault is not Python") from error
        if is_same:
            raise StaleList(f"{self.name}: the fault changes nothing")
        return planted


@functools.lru_cache(maxsize=1)  # the faults of a module follow each other
def _program(text: str) -> str:
    return ast.dump(ast.parse(text))


def load_faults(only: str = "") -> list[Fault]:
    """Read the tables.

    Args:
        only: Take the faults whose name holds this text.

    Raises:
        StaleList: Two faults have one name.
    """
    faults = []
    for path in sorted(TABLES.glob("*.toml")):
        for module, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            for what, old, new, *tests in table["faults"]:
                words = tuple(shlex.split(tests[0] if tests else table["tests"]))
                faults.append(Fault(module, what, old, new, words))
    names = [fault.name for fault in faults]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StaleList(f"two faults of one name: {twice}")
    return [fault for fault in faults if only in fault.name]
