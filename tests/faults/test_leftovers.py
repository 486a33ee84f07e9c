"""Killed writers leave temporary files; the next run of the same command leaves none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.corpora import articles, write_json_lines
from helpers.process import one_thread
from helpers.sets import make_tokens

from shards.build import build_articles, build_impressions
from shards.files import atomic_file, clear_leftovers, temporary_folder
from shards.foreign import index_tars
from shards.reader import ShardSet

ROOT = Path(__file__).parents[2]

# Writes argv[1] and waits inside, holding its temporary file or folder.
HOLDER = """
import sys, time
from pathlib import Path
from shards.files import atomic_file, temporary_folder

path = Path(sys.argv[1])
context = temporary_folder(path) if path.suffix == "" else atomic_file(path)
with context:
    print("held", flush=True)
    time.sleep(600)
"""

BUILD = """
import sys
import shards.chunks
from shards.build import build_articles, build_impressions
from shards.tokenize import tokenize_set
from shards.reader import ShardSet

if __name__ == "__main__":
    shards.chunks.CHUNK_BYTES = 20_000
    what, source, out, other = sys.argv[1:]
    if what == "articles":
        build_articles([source], out, samples_per_shard=50, processes=2)
    elif what == "clicks":
        build_impressions([source], other, out, samples_per_shard=50, processes=2)
    else:
        tokenize_set(ShardSet.open(out), other, processes=2)
"""


def files(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def temporaries(folder: Path) -> list[Path]:
    found = []
    for path, folders, names in os.walk(folder):
        found += [Path(path) / name for name in (*folders, *names) if ".tmp-" in name]
    return found


def start(program: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env=one_thread() | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("name", ["a.json", "folder"])
def test_what_a_living_process_writes_stays(tmp_path, name):
    process = start(HOLDER, tmp_path / name)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        (left,) = temporaries(tmp_path)
        clear_leftovers(tmp_path)
        assert left.exists()
    finally:
        process.kill()
        process.wait()
    assert left.exists()
    (tmp_path / ".hidden").write_bytes(b"")
    (tmp_path / ".a.json.tmp-mine").write_bytes(b"")
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.json.tmp-mine", ".hidden"]


def test_a_file_that_is_cleared_before_it_is_held_is_begun_again(tmp_path, monkeypatch):
    import fcntl

    real, calls = fcntl.flock, []

    def cleared_first(descriptor, operation):
        if not calls:
            calls.append(descriptor)
            clear_leftovers(tmp_path)
            assert temporaries(tmp_path) == []
        real(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", cleared_first)
    with atomic_file(tmp_path / "a.json") as file:
        file.write(b"{}")
    assert files(tmp_path) == {"a.json": b"{}"}


def test_a_file_system_without_locks_keeps_its_temporaries(tmp_path, monkeypatch):
    def refused(descriptor, operation):
        raise OSError(95, "Operation not supported")

    (tmp_path / ".a.json.tmp-1-0123abcd").write_bytes(b"")
    monkeypatch.setattr("fcntl.flock", refused)
    with atomic_file(tmp_path / "b.json") as file:
        clear_leftovers(tmp_path)
        file.write(b"{}")
    with temporary_folder(tmp_path / "c") as folder:
        clear_leftovers(tmp_path)
        folder.rename(tmp_path / "c")
    assert set(files(tmp_path)) == {".a.json.tmp-1-0123abcd", "b.json", "c"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each command's inputs, and what it leaves when nothing kills it."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_json_lines(folder / "a.jsonl", articles(1000))
    made = build_articles([source], folder / "plain", samples_per_shard=50).shard_set
    plain = files(folder / "plain")
    lines = [f"{n}\tU{n % 7}\t11/15/2019 8:55:22 PM\tN1 N4\tN2-0 N3-1" for n in range(2000)]
    (folder / "b.tsv").write_text("\n".join(lines) + "\n")
    build_impressions([folder / "b.tsv"], made, folder / "log", samples_per_shard=50)
    make_tokens(made, folder / "tokenizer", vocab_size=80)
    return folder, {"articles": plain, "clicks": files(folder / "log"), "start": plain}


@pytest.mark.parametrize("what", ["articles", "clicks", "tokens"])
@pytest.mark.parametrize("moment", [0, 5])
def test_kills_of_builds_and_tokenizing_leave_nothing(tmp_path, whole, what, moment):
    """Killed with its workers when its ``moment``-th new temporary file is seen."""
    folder, expected = whole
    out = tmp_path / "set"
    if what == "tokens":
        build_articles([folder / "a.jsonl"], out, samples_per_shard=50)
    source = folder / ("b.tsv" if what == "clicks" else "a.jsonl")
    other = folder / ("tokenizer" if what == "tokens" else "plain")
    process = start(BUILD, what, source, out, other)
    seen: set[str] = set()
    while process.poll() is None and len(seen) <= moment:
        seen.update(path.name for path in temporaries(out))
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if what == "articles":
        build_articles([source], out, samples_per_shard=50)
        assert files(out) == expected["articles"]
    elif what == "clicks":
        made = ShardSet.open(folder / "plain")
        build_impressions([source], made, out, samples_per_shard=50)
        assert files(out) == expected["clicks"]
    else:
        from shards.tokenize import tokenize_set

        tokenize_set(ShardSet.open(out), other)
        assert temporaries(out) == []
        assert set(expected["start"]) < set(files(out))


@pytest.mark.parametrize("name", ["manifest.json", "columns/clicks/x.safetensors", "lock"])
def test_leftovers_beside_a_finished_set_go_with_the_next_run(tmp_path, whole, name):
    folder, expected = whole
    out = tmp_path / "set"
    made = ShardSet.open(folder / "plain")
    build_impressions([folder / "b.tsv"], made, out, samples_per_shard=50)
    if name == "lock":
        (out / ".building.lock").write_bytes(b"")
    else:
        place = next(out.glob("columns/*")) if "/" in name else out
        (place / f".{Path(name).name}.tmp-1-0123abcd").write_bytes(b"half")
    again = build_impressions([folder / "b.tsv"], made, out, samples_per_shard=50)
    assert again.already_built
    assert files(out) == expected["clicks"]


def test_leftovers_of_an_index_of_tars(tmp_path):
    from helpers.foreign_tars import json_tars

    json_tars(tmp_path / "tars", articles(5))
    out = tmp_path / "set"
    index_tars([tmp_path / "tars"], out)
    expected = set(files(out))
    (out / ".shard_0000.idx.tmp-1-0123abcd").write_bytes(b"half")
    (out / ".shard_0000.tar.tmp-1-0123abcd").symlink_to(tmp_path / "tars" / "shard_0000.tar")
    index_tars([tmp_path / "tars"], out, force=True)
    assert set(files(out)) == expected
