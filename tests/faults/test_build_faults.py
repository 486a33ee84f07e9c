"""Builds that are killed or run out of room: nothing is published, and nothing is done twice."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from helpers.corpora import articles, write_json_lines
from helpers.process import run

from shards.build import build_articles
from shards.errors import DataError
from shards.files import atomic_file
from shards.reader import ShardSet

ROOT = Path(__file__).parents[2]
CHUNK_BYTES = 1100
SPOOLS, SHARDS = 13, 10

# Builds argv[1] to argv[2] and kills itself where argv[4] says, with its workers at work.
PROGRAM = """
import json, multiprocessing, os, resource, signal, sys
import shards.chunks, shards.publish
from shards.build import build_articles
from shards.pool import Workers

source, out, processes, moment, number, chunk_bytes = sys.argv[1:]
shards.chunks.CHUNK_BYTES = int(chunk_bytes)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

real_map, real_manifest = Workers.map, shards.publish.write_manifest

def counted(self, function, tasks):
    for count, result in enumerate(real_map(self, function, tasks), 1):
        if (function.__name__, count) == (moment, int(number)):
            die()
        if moment == "worker" and count == 1:
            multiprocessing.active_children()[0].kill()
        yield result

def manifest(*arguments):
    if moment == "manifest":
        die()
    real_manifest(*arguments)
    if moment == "published":
        die()

Workers.map, shards.publish.write_manifest = counted, manifest
if moment == "publish":
    shards.publish.SetPublisher.publish = lambda *arguments: die()
if moment == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
try:
    build_articles([source], out, samples_per_shard=10, processes=int(processes))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def source(tmp_path):
    rows = articles(100)
    return write_json_lines(tmp_path / "a.jsonl", [*rows[:50], b"{", rows[3], *rows[50:]])


@pytest.fixture
def counting(monkeypatch):
    """Builds in this process with the program's chunks; the files that are made are listed."""
    monkeypatch.setattr("shards.chunks.CHUNK_BYTES", CHUNK_BYTES)
    made = []

    def listed(path, mode="wb"):
        made.append(Path(path).name)
        return atomic_file(path, mode)

    monkeypatch.setattr("shards.spool.atomic_file", listed)
    monkeypatch.setattr("shards.writer.atomic_file", listed)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    assert all(path.is_file() for path in folder.iterdir()), list(folder.iterdir())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build_killed(source, out, processes, moment, number=0):
    words = [source, out, processes, moment, number, CHUNK_BYTES]
    return run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        timeout=60,
        cwd=ROOT,
        PYTHONPATH=str(ROOT),
    )


def staged(out: Path, pattern: str) -> dict[str, tuple[int, int]]:
    found = sorted(out.glob(f".building-work-*/{pattern}"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("moment", "number"),
    [("run", 1), ("run", 7), ("write_shard", 1), ("write_shard", 6), ("publish", 0)],
)
def test_a_killed_build_goes_on(tmp_path, source, counting, processes, moment, number):
    whole = build_articles([source], tmp_path / "whole", samples_per_shard=10).shard_set
    assert sum(name.endswith(".spool") for name in counting) == SPOOLS
    assert sum(name.endswith(".tar") for name in counting) == SHARDS
    out = tmp_path / "set"
    # With its pipes closed, so its workers have left too.
    killed = build_killed(source, out, processes, moment, number)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "manifest.json").exists()
    assert list(out.glob("*.tar")) == []
    spools, tars = staged(out, "spools/*.spool"), staged(out, "*.tar")
    finished = {f"{done.removesuffix('.done')}.tar" for done in staged(out, "*.done")}
    assert len(spools) >= (number if moment == "run" else SPOOLS)
    assert len(finished) >= {"write_shard": number, "publish": SHARDS}.get(moment, 0)

    counting.clear()
    built = build_articles([source], out, samples_per_shard=10).shard_set
    assert contents(out) == contents(whole.path)
    again = set(counting)
    assert not again & set(spools)
    assert not again & finished
    assert len([name for name in again if name.endswith(".spool")]) == SPOOLS - len(spools)
    for name in finished:
        status = (built.path / name).stat()
        assert (status.st_ino, status.st_mtime_ns) == tars[name]


@pytest.mark.parametrize("moment", ["manifest", "published"])
def test_killed_while_it_is_published(tmp_path, source, counting, moment):
    whole = build_articles([source], tmp_path / "whole", samples_per_shard=10).shard_set
    out = tmp_path / "set"
    assert build_killed(source, out, 1, moment).returncode == -signal.SIGKILL
    assert (out / "manifest.json").exists() == (moment == "published")
    counting.clear()
    again = build_articles([source], out, samples_per_shard=10)
    assert again.already_built == (moment == "published")
    assert not any(name.endswith(".spool") for name in counting)
    assert contents(out) == contents(whole.path)


def test_killed_over_and_over(tmp_path, source, counting):
    whole = build_articles([source], tmp_path / "whole", samples_per_shard=10).shard_set
    out = tmp_path / "set"
    for moment, number in (("run", 3), ("run", 8), ("write_shard", 2), ("publish", 0)):
        done = build_killed(source, out, 2, moment, number)
        assert done.returncode == -signal.SIGKILL, done.stderr
        # What a write that was cut off leaves is in nobody's way.
        (next(out.glob(".building-work-*")) / "spools" / ".x.spool.tmp-1-abcd").write_bytes(b"x")
    build_articles([source], out, samples_per_shard=10, processes=2)
    assert contents(out) == contents(whole.path)


@pytest.mark.parametrize("change", ["input", "option"])
def test_other_inputs_or_options_start_over(tmp_path, source, counting, change):
    out = tmp_path / "set"
    assert build_killed(source, out, 1, "write_shard", 3).returncode == -signal.SIGKILL
    if change == "input":
        write_json_lines(source, articles(40))
    options = {"samples_per_shard": 10, "keep_duplicates": change == "option"}
    build_articles([source], out, **options)
    build_articles([source], tmp_path / "fresh", **options)
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("place", range(0, 60, 7))
def test_a_full_disk_publishes_nothing(tmp_path, source, counting, monkeypatch, place):
    whole = build_articles([source], tmp_path / "whole", samples_per_shard=10).shard_set
    out = tmp_path / "set"
    calls = iter(range(10**6))
    real = os.fsync

    def full(descriptor):
        if next(calls) >= place:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(
            DataError, match=r"No space left on device \(.*\); correct that, then run"
        ) as e:
            build_articles([source], out, samples_per_shard=10)
    assert "\n" not in str(e.value)
    assert not (out / "manifest.json").exists()
    assert list(out.rglob(".*.tmp-*")) == []
    counting.clear()
    build_articles([source], out, samples_per_shard=10)
    assert contents(out) == contents(whole.path)


def test_room_for_less_than_a_spool_in_other_processes(tmp_path, source):
    done = build_killed(source, tmp_path / "set", 2, "full", 1000)
    assert done.returncode == 1
    assert done.stderr.startswith("DataError: cannot write to ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_worker_that_is_killed(tmp_path, source, counting):
    out = tmp_path / "set"
    done = build_killed(source, out, 2, "worker")
    assert done.returncode == 1
    assert "was killed (out of memory?); lower --processes and run the same" in done.stderr
    assert done.stderr.startswith("DataError: ")
    assert not (out / "manifest.json").exists()
    spools = staged(out, "spools/*.spool")
    assert spools
    build_articles([source], out, samples_per_shard=10)
    assert not set(spools) & set(counting)


def test_a_forced_build_that_is_killed_leaves_the_former_set(tmp_path, source, counting):
    out = tmp_path / "set"
    former = build_articles([write_json_lines(tmp_path / "b.jsonl", articles(5))], out).shard_set
    before = contents(out)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("shards.spooled_build.write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_articles([source], out, samples_per_shard=10, force=True)
    assert {path.name for path in out.iterdir() if path.is_file()} == set(before)
    assert list(ShardSet.open(out)) == list(former)
    counting.clear()
    forced = build_articles([source], out, samples_per_shard=10, force=True).shard_set
    assert not any(name.endswith(".spool") for name in counting)
    assert forced.num_rows == 100
    assert json.loads((out / "refused.jsonl").read_text().splitlines()[0])["line"] == 51


def interrupted(task):
    raise KeyboardInterrupt
