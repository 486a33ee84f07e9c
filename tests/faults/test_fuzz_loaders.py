"""Fuzz every loader of files that users or strangers give: no traceback, no hang, no silent change.

Each row of ``helpers.fuzz_data`` and ``helpers.fuzz_models`` makes small valid files; hypothesis
changes bytes, JSON values and whole files. The loader may then give the same result, give another
one that the row allows, or raise a ``TinyNewsRecError`` of one line.

Quick by default, and the same examples in every run. By hand, for an hour and other examples::

    TNR_FUZZ_S=3600 pytest tests/faults/test_fuzz_loaders.py

shares that many seconds out over the rows (``-k NAME`` gives them to one).
"""

import os
import time
from pathlib import Path

import pytest
from helpers.fuzz import Edit, check, edits, target_files
from helpers.fuzz_data import LOADERS as DATA
from helpers.fuzz_models import LOADERS as MODELS
from hypothesis import HealthCheck, Phase, given, seed, settings

LOADERS = [*DATA, *MODELS]
SECONDS = float(os.environ.get("TNR_FUZZ_S", "0"))


@pytest.mark.timeout(int(SECONDS) + 600)
@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.name)
def test_what_is_changed_is_refused_in_one_line_or_changes_nothing(loader, tmp_path: Path, request):
    original, work = tmp_path / "original", tmp_path / "work"
    original.mkdir()
    loader.make(original)
    assert target_files(loader, original)
    work.mkdir()
    expected = loader.load(original)
    check(loader, original, work, expected, [Edit(0, "cut", 0, 0, 1)])
    rows = len({item.name for item in request.session.items if item.fspath == request.fspath})
    until = time.monotonic() + SECONDS / rows
    number = int(time.time()) if SECONDS else 0
    while True:
        _attempts(loader, original, work, expected, number)
        number += 1
        if time.monotonic() >= until:
            return


def _attempts(loader, original: Path, work: Path, expected, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=loader.examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(edits())
    def attempt(changes: list[Edit]) -> None:
        check(loader, original, work, expected, changes)

    attempt()
