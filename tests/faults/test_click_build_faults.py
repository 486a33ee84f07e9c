"""Builds of click logs that are killed: no half set, and what is finished is not made again."""

import signal
import sys
from pathlib import Path

import pytest
from helpers.corpora import articles, write_json_lines
from helpers.process import run

from shards.build import build_articles, build_impressions
from shards.cells import write_cell
from shards.clicks import ClickColumn
from shards.files import atomic_file

ROOT = Path(__file__).parents[2]
CHUNK_BYTES = 400
SPOOLS, SHARDS = 6, 5

# Builds argv[1] about argv[2] to argv[3] and kills itself where argv[5] says.
PROGRAM = """
import os, signal, sys
import shards.cells, shards.chunks, shards.columns
from shards.build import build_impressions
from shards.pool import Workers
from shards.publish import SetPublisher

log, news, out, processes, moment, number, chunk_bytes = sys.argv[1:]
shards.chunks.CHUNK_BYTES = int(chunk_bytes)

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

real_map, real_cell = Workers.map, shards.columns.write_cell
cells = 0

def counted(self, function, tasks):
    name = function.__qualname__.split(".")[0]
    for count, result in enumerate(real_map(self, function, tasks), 1):
        if (name, count) == (moment, int(number)):
            die()
        yield result

def cell(*arguments):
    global cells
    cells += 1
    if moment == "cell" and cells == int(number):
        # The data file is there and its commit record is not.
        shards.cells.write_json_atomic = die
    return real_cell(*arguments)

Workers.map, shards.columns.write_cell = counted, cell
if moment == "publish":
    SetPublisher.publish = die
build_impressions([log], news, out, samples_per_shard=10, processes=int(processes))
"""


@pytest.fixture
def article_set(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", articles(20))
    return build_articles([path], tmp_path / "articles").shard_set


@pytest.fixture
def log(tmp_path):
    lines = [f"{n}\tU{n * n % 13}\t11/15/2019 8:55:22 PM\tN1 X N4\tN2-0 N3-1" for n in range(50)]
    lines[20:20] = ["a line that is not an impression", lines[3]]
    path = tmp_path / "behaviors.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def made(monkeypatch):
    """Builds in this process with the program's chunks; lists the files that are made."""
    monkeypatch.setattr("shards.chunks.CHUNK_BYTES", CHUNK_BYTES)
    names = []

    def listed(path, mode="wb"):
        names.append(Path(path).name)
        return atomic_file(path, mode)

    def listed_cell(folder, column, shard, tensors):
        names.append(f"{shard.stem}.cell")
        return write_cell(folder, column, shard, tensors)

    monkeypatch.setattr("shards.spool.atomic_file", listed)
    monkeypatch.setattr("shards.writer.atomic_file", listed)
    monkeypatch.setattr("shards.columns.write_cell", listed_cell)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("moment", "number", "processes"),
    [("SpoolJob", 4, 2), ("write_shard", 3, 1), ("publish", 0, 2), ("cell", 3, 1)],
)
def test_a_killed_build_goes_on(tmp_path, log, article_set, made, moment, number, processes):
    whole = build_impressions([log], article_set, tmp_path / "whole", samples_per_shard=10)
    assert sum(name.endswith(".spool") for name in made) == SPOOLS
    assert sum(name.endswith(".cell") for name in made) == SHARDS
    out = tmp_path / "set"
    words = [log, article_set.path, out, processes, moment, number, CHUNK_BYTES]
    killed = run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        timeout=60,
        cwd=ROOT,
        PYTHONPATH=str(ROOT),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (out / "manifest.json").exists() == (moment == "cell")
    staging = list(out.glob(".building-work-*"))
    finished = {path.name for folder in staging for path in folder.rglob("*.spool")}
    finished |= {f"{path.stem}.tar" for folder in staging for path in folder.glob("*.done")}
    cells = out.glob("columns/clicks-*/impressions-*.json")
    finished |= {f"{path.stem}.cell" for path in cells}
    expected = {"SpoolJob": 4, "write_shard": SPOOLS + 3, "publish": SPOOLS + SHARDS, "cell": 2}
    assert len(finished) >= expected[moment]

    made.clear()
    again = build_impressions([log], article_set, out, samples_per_shard=10)
    assert again.already_built == (moment == "cell")
    assert not finished & set(made)
    assert contents(out) == contents(whole.shard_set.path)
    users = ClickColumn.open(again.shard_set).user(range(50)).tolist()
    numbers: dict[int, int] = {}
    assert users == [numbers.setdefault(n * n % 13, len(numbers)) for n in range(50)]


def test_an_article_set_that_is_another_starts_over(tmp_path, log, article_set, made, monkeypatch):
    out = tmp_path / "set"

    def interrupted(task):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shards.spooled_build.write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_impressions([log], article_set, out)
    rows = list(reversed(articles(20)))
    path = write_json_lines(tmp_path / "b.jsonl", rows)
    other = build_articles([path], tmp_path / "other").shard_set
    made.clear()
    built = build_impressions([log], other, out).shard_set
    assert sum(name.endswith(".spool") for name in made) == SPOOLS
    assert built.sample(0)["candidates"] == [17, 16]
    assert list(built.path.glob(".building*")) == []
