"""The table of faults names tests that there are."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
FOLDERS = ("faults", "unit", "slurm", "launchers", "e2e")


def test_every_test_of_the_table_exists():
    table = (TESTS / "faults" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    files = [path for name in FOLDERS for path in (TESTS / name).glob("*.py")]
    defined = {
        name for file in files for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))
    }
    assert len(named) > 20
    assert named - defined == set()
    counts = {"A": 8, "B": 3, "C": 4, "D": 5, "E": 6, "F": 7, "G": 5, "H": 7, "J": 7, "K": 9}
    rows = [f"{letter}{number + 1}" for letter, count in counts.items() for number in range(count)]
    assert [row for row in rows if f"\n| {row} |" not in table] == []
