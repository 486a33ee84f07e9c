"""The table of faults names tests that there are."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_of_the_table_exists():
    table = (TESTS / "faults" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    files = [*(TESTS / "faults").glob("*.py"), *(TESTS / "unit").glob("test_shards*.py")]
    defined = {
        name for file in files for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))
    }
    assert len(named) > 20
    assert named - defined == set()
    rows = ["C1", "C2", "C3", "C4", "D1", "D2", "D3", "D4", "D5"]
    assert [row for row in rows if f"\n| {row} |" not in table] == []
