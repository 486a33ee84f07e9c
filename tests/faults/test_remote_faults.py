"""Faults between here and a shard set elsewhere: servers that fail, lie, stall or are gone, kills,
and several processes on one cache."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.elsewhere import serve
from helpers.launch import metrics
from helpers.process import one_thread
from helpers.sets import make_articles, make_tokens
from helpers.tnr import ROOT, tnr
from helpers.world import TINY_MODEL, make_world

from shards.cache import CacheSettings
from shards.column_check import verify_columns
from shards.columns import ColumnReader
from shards.errors import DamageError, DataError
from shards.reader import ShardSet
from shards.remote import Patience, RemoteError
from shards.tokens import TokenColumn

CELL = "news-000001.safetensors"
ROWS = np.arange(16, 32)


@pytest.fixture
def articles(tmp_path):
    articles = make_articles(tmp_path / "there" / "articles", 64)
    make_tokens(articles, tmp_path / "tokenizer")
    return articles


@pytest.fixture
def server(articles):
    with serve(articles.path.parent) as server:
        yield server


@pytest.fixture
def opened(server, tmp_path):
    """Open the set elsewhere, with a cache of its own."""

    def open_set(cache="cache", attempts=4, timeout_s=5.0, **changes):
        settings = CacheSettings(
            str(tmp_path / cache), patience=Patience(attempts, timeout_s), **changes
        )
        return ShardSet.open(f"{server.url}/articles", cache=settings)

    return open_set


def bodies(shard_set):
    return TokenColumn.open(shard_set).batch("body", ROWS, 20)[0].tolist()


def no_leftovers(folder: Path) -> bool:
    return not [p for p in folder.rglob(".*.tmp-*")]


def test_errors_are_asked_again_and_said(server, opened, articles, capsys):
    server.faults.errors.update({CELL: 2, "news-000002.tar": 2, "manifest.json": 1})
    assert bodies(opened()) == bodies(articles)
    assert opened().payload(40) == articles.payload(40)
    said = capsys.readouterr().err
    assert f"{CELL}: HTTP 500" in said and "attempt 2 of 4 in 0.2 s" in said


def test_a_server_that_goes_on_failing_is_an_error_that_names_the_url(server, opened):
    server.faults.errors["news-000001.tar"] = 100
    shard_set = opened(attempts=3)
    with pytest.raises(RemoteError, match=rf"{server.url}/articles/news-000001.tar.*3 attempts"):
        shard_set.payload(16)
    assert server.fetched("news-000001.tar") == 3


@pytest.mark.parametrize("name", [CELL, "news-000001.tar", "news-000001.idx"])
def test_an_answer_that_ends_early_is_asked_again(server, opened, articles, tmp_path, name):
    server.faults.cut[name] = 1
    shard_set = opened()
    assert bodies(shard_set) == bodies(articles)
    assert shard_set.payload(20) == articles.payload(20)
    assert server.faults.cut[name] == 0 and no_leftovers(tmp_path / "cache")


def flip(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("name", [CELL, "news-000001.tar", "news-000001.idx"])
def test_wrong_bytes_are_asked_again_and_then_an_error(server, opened, tmp_path, articles, name):
    server.faults.damage = lambda path, data: flip(data) if path.endswith(name) else data
    with pytest.raises(DamageError, match=rf"{name}.*(sha256|checksum|fit).*gave up after 2"):
        shard_set = opened(attempts=2)
        shard_set.payload(16)
        bodies(shard_set)
    assert no_leftovers(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(f"articles*/*/{name}"))
    server.faults.damage = lambda path, data: data
    mended = opened()
    assert bodies(mended) == bodies(articles) and mended.payload(16) == articles.payload(16)


def test_a_shard_changed_after_the_manifest_was_read(server, opened, articles):
    """D3: replaced by one of the same size, swapped, missing, or with the index of another."""
    shard_set = opened(attempts=2)
    first, second = articles.path / "news-000000.tar", articles.path / "news-000001.tar"
    whole = first.read_bytes()
    first.write_bytes(flip(whole))
    with pytest.raises(DamageError, match=r"news-000000.tar: its sha256 is .*changed since"):
        shard_set.payload(0)
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamageError, match=r"news-000000.tar: (its sha256|it has)"):
        shard_set.payload(0)
    first.unlink()
    with pytest.raises(DataError, match=r"news-000000.tar does not exist"):
        shard_set.payload(0)
    first.write_bytes(whole)
    stale = (articles.path / "news-000001.idx").read_bytes()
    (articles.path / "news-000000.idx").write_bytes(stale)
    with pytest.raises(DamageError, match=r"news-000000.idx: it does not fit its tar"):
        shard_set.payload(0)
    assert shard_set.payload(17) == articles.payload(17)


def test_a_shard_or_column_cell_that_is_not_there(server, opened, articles):
    (articles.path / "extra-000000.tar").write_bytes(b"not in the manifest: nobody asks for it")
    record = next(articles.columns_dir.glob("tokens-*")) / "news-000002.json"
    record.unlink()
    with pytest.raises(DataError, match=r"1 of 4 shards have no committed cell.*news-000002"):
        TokenColumn.open(opened())
    with pytest.raises(DataError, match="is not a shard set"):
        ShardSet.open(f"{server.url}/nothing", cache=CacheSettings(str(articles.path / "c")))


def test_a_cell_written_again_elsewhere_is_never_mixed_with_what_is_here(server, opened, articles):
    tokens = TokenColumn.open(opened(attempts=2))
    folder = next(articles.columns_dir.glob("tokens-*"))
    (folder / CELL).write_bytes((folder / "news-000002.safetensors").read_bytes())
    with pytest.raises(DamageError, match=rf"{CELL}.*(bytes of body|checksum)"):
        tokens.batch("body", ROWS, 20)


def test_a_shard_that_does_not_stay_in_the_cache_is_no_damage(opened, articles):
    shard_set = opened(max_bytes=articles.shards[0].bytes + 100)
    with pytest.raises(DataError, match=r"is evicted as soon as it is fetched") as caught:
        shard_set.sample(0)
    assert not isinstance(caught.value, DamageError)


def test_damage_in_the_cache_says_what_to_delete(opened):
    shard_set = opened()
    shard_set.sample(0)
    tar = shard_set.path / "news-000000.tar"
    data = bytearray(tar.read_bytes())
    data[520] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamageError, match=r"news-000000\.tar, .* delete it and news-000000\.idx"):
        opened().sample(0)
    for path in (tar, tar.with_suffix(".idx")):
        path.unlink()
    assert opened().sample(0)["id"] == "N0"


def test_a_record_cannot_name_a_file_outside_its_folder(opened, articles, tmp_path):
    folder = next(articles.columns_dir.glob("tokens-*"))
    record = json.loads((folder / CELL).with_suffix(".json").read_text())
    content = "/../../../..".ljust(64, "x")
    data = (folder / CELL).read_bytes().replace(record["content"].encode(), content.encode())
    (folder / CELL).write_bytes(data)
    (folder / CELL).with_suffix(".json").write_text(json.dumps(record | {"content": content}))
    with pytest.raises(DataError, match=r"news-000001.json is not the commit record"):
        TokenColumn.open(opened())
    assert not list(tmp_path.rglob("..@*"))


def test_verifying_reads_the_tensors_in_the_cache(opened):
    reader = TokenColumn.open(opened()).reader
    assert verify_columns(reader) == []
    kept = next(reader.folder.glob("fetched/title.values@*@news-000001"))
    data = bytearray(kept.read_bytes())
    data[3] ^= 1
    kept.write_bytes(data)
    (problem,) = verify_columns(TokenColumn.open(opened()).reader)
    assert CELL in problem and f"title.values in the cache {kept.parent}" in problem


def test_a_manifest_that_was_damaged_on_the_way(server, opened, articles):
    server.faults.damage = lambda path, data: (
        data.replace(b'"samples": 16', b'"samples": 17') if path.endswith("manifest.json") else data
    )
    with pytest.raises(DamageError, match=r"fingerprint does not fit.*gave up after 2"):
        opened(attempts=2)


def test_a_silent_server_is_given_up(server, opened):
    shard_set = opened(attempts=2, timeout_s=0.3)
    server.faults.delay_s = 2.0
    started = time.monotonic()
    with pytest.raises(RemoteError, match=r"Timeout.*gave up after 2"):
        shard_set.payload(16)
    assert time.monotonic() - started < 10


def test_a_server_that_comes_back_is_waited_for(articles, tmp_path, capsys):
    with serve(articles.path.parent) as first:
        port = first.port
        settings = CacheSettings(str(tmp_path / "cache"), patience=Patience(8, 5.0))
        shard_set = ShardSet.open(f"{first.url}/articles", cache=settings)
    started = threading.Event()

    def come_back():
        started.wait()
        time.sleep(1.0)
        with serve(articles.path.parent, port=port):
            done.wait(30)

    done = threading.Event()
    thread = threading.Thread(target=come_back)
    thread.start()
    started.set()
    try:
        assert shard_set.payload(33) == articles.payload(33)
    finally:
        done.set()
        thread.join()
    assert "tnr: waiting for http://" in capsys.readouterr().err


def test_what_is_in_the_cache_is_read_without_the_server(server, opened, articles, capsys):
    expected = bodies(opened())
    server.stop()
    shard_set = opened(attempts=2)
    assert bodies(shard_set) == expected
    assert "using the copy in" in capsys.readouterr().err
    with pytest.raises(RemoteError, match=r"news-000003.*gave up after 2"):
        TokenColumn.open(shard_set).batch("body", np.array([63]), 20)


READER = """
import sys
sys.path[:0] = [{repository!r}]
import numpy as np
from shards.cache import CacheSettings
from shards.column_check import verify_columns
from shards.columns import ColumnReader
from shards.reader import ShardSet
from shards.tokens import TokenColumn
shard_set = ShardSet.open(sys.argv[1], cache=CacheSettings(sys.argv[2]))
print("open", flush=True)
tokens = TokenColumn.open(shard_set)
ids, _ = tokens.batch("body", np.arange(shard_set.num_rows), 20)
print(int(ids.sum()), len([shard_set.payload(r) for r in range(shard_set.num_rows)]), flush=True)
"""


def start_reader(url, cache):
    return subprocess.Popen(
        [sys.executable, "-c", READER.format(repository=str(ROOT)), url, str(cache)],
        stdout=subprocess.PIPE,
        text=True,
        env=one_thread(),
    )


def test_processes_of_a_node_bring_each_file_over_once(server, articles, tmp_path):
    server.faults.delay_s = 0.01
    readers = [start_reader(f"{server.url}/articles", tmp_path / "cache") for _ in range(3)]
    answers = {reader.communicate(timeout=120)[0] for reader in readers}
    ids, _ = TokenColumn.open(articles).batch("body", np.arange(64), 20)
    assert answers == {f"open\n{int(ids.sum())} 64\n"}
    for suffix in (".tar", ".idx", ".safetensors"):
        asked = {what: n for what, n in server.gets.items() if what[0].endswith(suffix)}
        assert asked and set(asked.values()) == {1}, asked
    assert no_leftovers(tmp_path / "cache")


def test_killed_at_any_point_the_cache_is_good(server, articles, tmp_path):
    url, cache = f"{server.url}/articles", tmp_path / "cache"
    server.faults.chunk, server.faults.delay_s = 4096, 0.01
    for wait in (0.0, 0.05, 0.1, 0.2, 0.4, 0.6):
        reader = start_reader(url, cache)
        assert reader.stdout.readline() == "open\n"
        time.sleep(wait)
        reader.send_signal(signal.SIGKILL)
        reader.communicate()
    ids, _ = TokenColumn.open(articles).batch("body", np.arange(64), 20)
    out, _ = start_reader(url, cache).communicate(timeout=120)
    assert out == f"open\n{int(ids.sum())} 64\n" and no_leftovers(cache)
    local = {p.name: p.read_bytes() for p in articles.path.glob("*.tar")}
    for path in cache.glob("articles*/*/*.tar"):
        assert path.read_bytes() == local[path.name]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("remote-training"), num_articles=100)


def train(world, name, articles, *more, task="post_train", processes=1):
    settings = TINY_MODEL | {
        "data.articles": articles,
        "data.window_shards": 2,
        "run.dir": world.folder / "runs" / name,
        "run.micro_batch": 4,
        "run.max_steps": 30,
        "run.epochs": 100,
        "run.log_every": 1,
        "run.copies.rule": "none",
    }
    words = [str(w) for key, value in settings.items() for w in (f"--{key}", value)]
    return tnr("train", task, *words, *more, processes=processes)


def room_for_most(url, cache, names):
    """Bytes of a cache that holds titles, and six in ten of the bodies."""
    shard_set = ShardSet.open(url, cache=CacheSettings(str(cache)))
    cells = [c for n in names for c in ColumnReader.open(shard_set, n).mirror_cells().values()]
    bodies = sum(cell.size(name) for cell in cells for name in cell.windowed())
    return sum(cell.small_bytes for cell in cells) + bodies * 6 // 10


@pytest.mark.slow
def test_training_does_not_see_the_difference(world, tmp_path):
    """Equal losses to the bit, stage I as well, in a cache that cannot hold the set."""
    for task in ("post_train", "post_train_distill"):
        more = []
        if task == "post_train_distill":
            more = ["--teachers.models", world.teacher("post_train", 1)]
            cached = tnr("teachers", "cache", "--stage", 1, "--articles", world.articles.path,
                         "--models", more[1])  # fmt: skip
            assert cached.returncode == 0, cached.stderr
        done = train(world, f"{task}-here", world.articles.path, *more, task=task)
        assert done.returncode == 0, done.stderr
        with serve(world.folder) as server:
            url, cache = f"{server.url}/articles", ["--data.cache_dir", tmp_path / task]
            small = train(world, "x", url, *more, *cache, "--data.cache_gib", 1e-6, task=task)
            assert small.returncode == 1 and "raise data.cache_gib" in small.stderr
            assert "Traceback" not in small.stderr
            names = ["tokens", "teacher-text"][: 1 + bool(more)]
            gib = room_for_most(url, tmp_path / "measure", names) / 2**30
            cache += ["--data.cache_gib", gib]
            done = train(world, f"{task}-there", url, *more, *cache, task=task)
            assert done.returncode == 0, done.stderr
            again = max(n for (path, _), n in server.gets.items() if "safetensors" in path)
        here, there = (metrics(world.folder / "runs" / f"{task}-{w}") for w in ("here", "there"))
        assert len(here) == 30 and here == there
        held = sum(p.stat().st_size for p in (tmp_path / task).rglob("fetched/*"))
        assert held <= gib * 2**30
        assert again > 1, "nothing was evicted"


@pytest.mark.slow
def test_two_ranks_share_a_cache(world, tmp_path):
    with serve(world.folder) as server:
        done = train(world, "ranks", f"{server.url}/articles",
                     "--data.cache_dir", tmp_path / "cache", processes=2)  # fmt: skip
        assert done.returncode == 0, done.stderr
        asked = {w: n for w, n in server.gets.items() if w[0].endswith(".safetensors")}
        assert asked and set(asked.values()) == {1}, asked


@pytest.mark.slow
def test_training_ends_with_an_error_when_the_server_is_gone(world, tmp_path):
    with serve(world.folder) as server:
        server.faults.damage = lambda path, data: data
        url = f"{server.url}/articles"
        cell = "columns/" + world.tokens.folder.name + "/news-000003.safetensors"
        words = ("--data.cache_dir", tmp_path / "cache", "--data.fetch_attempts", 2)
        assert train(world, "warm", url, *words, "--run.max_steps", 1).returncode == 0
        for path in (tmp_path / "cache").rglob("body*"):
            path.unlink()
        server.faults.errors[cell] = 10_000
        done = train(world, "gone", url, *words)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert cell in done.stderr and "gave up after 2 attempts" in done.stderr


def test_commands_on_a_url(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TNR_CACHE", str(tmp_path / "cache"))
    url = f"{server.url}/articles"
    shown = tnr("shards", "show", url, 3, "--no-tokens")
    assert shown.returncode == 0 and json.loads(shown.stdout)["id"] == "N3"
    stats = tnr("shards", "stats", url, "--json")
    assert stats.returncode == 0 and json.loads(stats.stdout)["samples"] == 64
    for verb in ("verify", "index"):
        refused = tnr("shards", verb, url)
        assert refused.returncode != 0 and "reads and writes folders" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert (tmp_path / "cache").is_dir()
