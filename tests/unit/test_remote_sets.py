"""Shard sets elsewhere read as those here do: samples, tokens, negatives, clicks, vectors."""

import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.batches import flat
from helpers.elsewhere import Server, s3_variables, serve
from helpers.foreign_tars import write_tar
from helpers.tnr import tnr
from helpers.world import TinyWorld, make_world

from shards.cache import Cache, CacheSettings, is_windowed
from shards.clicks import ClickColumn
from shards.columns import ColumnReader, ColumnWriter
from shards.errors import DataError, UsageError
from shards.foreign import index_tars
from shards.order import EpochOrder
from shards.reader import ShardSet
from shards.remote import Patience, check_url
from shards.stream import Stream
from shards.tokens import TokenColumn
from trainer.engine.signals import StopRequest
from trainer.tasks.build import build
from trainer.tasks.post_train.teachers import stored_logits
from trainer.tasks.registry import open_sources
from trainer.teacher_server.fill import FillRequest, fill
from trainer.teacher_server.kinds.logits import fill_logits
from trainer.teacher_server.kinds.text import TextVectors


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    world = make_world(tmp_path_factory.mktemp("elsewhere"), num_articles=100)
    writer = ColumnWriter(world.articles, "teacher-text", {"weights": "abc"})
    for shard in range(world.articles.num_shards):
        rows = np.array(world.articles.rows_of(shard), np.float32)[:, None]
        writer.write(shard, {"title": rows + np.zeros((1, 3), np.float32), "body": rows * 2})
    return world


def settings(folder: Path, **changes) -> CacheSettings:
    return CacheSettings(str(folder), **{"patience": Patience(4, 5.0), **changes})


@pytest.fixture(params=["http", "http-no-ranges", "s3", "file"])
def base(request, world, monkeypatch):
    """The URL of the folder that the sets are in."""
    if request.param == "file":
        yield world.folder.as_uri()
        return
    folder, kind = world.folder, request.param[:4]
    with serve(folder.parent if kind == "s3" else folder, kind.rstrip("-")) as server:
        server.faults.has_ranges = request.param != "http-no-ranges"
        for name, value in s3_variables(server).items():
            monkeypatch.setenv(name, value)
        yield f"s3://{folder.name}" if kind == "s3" else server.url


def test_everything_is_as_it_is_here(world, base, tmp_path):
    cache = settings(tmp_path)
    there = ShardSet.open(f"{base}/articles/", kind="articles", cache=cache)
    here = world.articles
    assert there.fingerprint == here.fingerprint and list(there) == list(here)
    # Our own object, as multiprocessing passes it on; nothing is read from a file.
    # Sets travel to worker processes; what is read is what was written in this line.
    assert pickle.loads(pickle.dumps(there)).payload(17) == here.payload(17)
    tokens, expected = TokenColumn.open(there), world.tokens
    rows = np.array([99, 3, 0, 50, 3])
    for name, length in (("title", 10), ("body", 30)):
        for a, b in zip(
            tokens.batch(name, rows, length), expected.batch(name, rows, length), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in tokens.tokenizer_dir.iterdir()) == sorted(
        p.name for p in expected.tokenizer_dir.iterdir()
    )
    for name in ("title", "body"):
        vectors = ColumnReader.open(there, "teacher-text", {"weights": "abc"}).gather(name, rows)
        assert vectors[:, 0].tolist() == [(2 if name == "body" else 1) * r for r in rows.tolist()]
    clicks = ClickColumn.open(ShardSet.open(f"{base}/clicks", cache=cache))
    local = ClickColumn.open(world.impressions)
    units = np.arange(local.num_clicks)
    for column in (clicks, local):
        column.found = column.sample_negatives(3, units, units % 2, 3)
    np.testing.assert_array_equal(clicks.found, local.found)
    np.testing.assert_array_equal(
        clicks.history(np.arange(20), 5)[0], local.history(np.arange(20), 5)[0]
    )


@pytest.fixture
def server(world) -> Server:
    with serve(world.folder) as server:
        yield server


def config_of(world, server, tmp_path, **more):
    return world.config(
        "post_train",
        data__articles=f"{server.url}/articles",
        data__cache_dir=str(tmp_path / "cache"),
        data__fetch_attempts=3,
        data__window_shards=2,
        **more,
    )


def body_bytes(world) -> int:
    """Bytes of the bodies of all shards."""
    cells = [world.tokens.reader._cell(s) for s in range(world.articles.num_shards)]
    return sum(p.end - p.begin for c in cells for n, p in c.places.items() if n[:4] == "body")


def pinned_and_cells(world, server, folder):
    """Bytes that the cache holds once the column is open, and its cells elsewhere."""
    there = ShardSet.open(f"{server.url}/articles", cache=settings(folder))
    tokens = TokenColumn.open(there)
    return there.mirror.cache.total(), tokens.reader.mirror_cells()


def test_batches_are_the_same_in_a_cache_smaller_than_the_set(world, server, tmp_path):
    pinned, _ = pinned_and_cells(world, server, tmp_path / "measure")
    room = pinned + body_bytes(world) * 2 // 3
    here = build(world.config("post_train", data__window_shards=2)).data
    config = config_of(world, server, tmp_path, data__cache_gib=room / 2**30)
    there = build(config).data
    cache = there.titles.tokens.reader.shard_set.mirror.cache
    seen = set()
    streams = (Stream(here.order, 8), Stream(there.order, 8))
    for _ in range(40):  # three epochs
        both = zip((here, there), streams, strict=True)
        a, b = (flat(d.collate(next(s)).batch) for d, s in both)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
        assert cache.total() <= room
        seen |= {p for p in cache.folder.rglob("body*") if is_windowed(p)}
    assert sum(p.exists() for p in seen) < len(seen)  # some were evicted


def test_a_cache_too_small_for_a_window_says_how_large_it_must_be(world, server, tmp_path):
    pinned, _ = pinned_and_cells(world, server, tmp_path / "measure")
    with pytest.raises(DataError, match=r"raise data\.cache_gib, or lower data\.window_shards"):
        build(config_of(world, server, tmp_path, data__cache_gib=(pinned + 100) / 2**30))


@pytest.mark.parametrize("size", [30, 60])
def test_what_two_processes_fetch_at_once_is_counted(tmp_path, size):
    folder = tmp_path / "set" / "version"
    folder.mkdir(parents=True)
    settings = CacheSettings(str(tmp_path), max_bytes=100)
    first = Cache(settings)
    first.use(folder)
    with first.file(folder / "a.tar", 60) as path:
        Cache(settings).write(folder / "b.tar", bytes(size))
        path.write_bytes(bytes(60))
    first.write(folder / "c.tar", bytes(40))
    assert first.total() <= 100


def test_a_tar_may_have_the_longest_name_that_a_set_takes(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    write_tar(folder / f"{'n' * 196}.tar", [("a.json", b'{"title": "t", "body": "b"}')])
    ColumnWriter(index_tars([folder]), "teacher-v", {}).write(0, {"title": np.ones(1)})
    there = ShardSet.open(folder.as_uri(), cache=settings(tmp_path / "cache"))
    assert there.sample(0)["title"] == "t"
    assert ColumnReader.open(there, "teacher-v").gather("title", np.arange(1)) == 1


def test_what_is_needed_for_any_row_comes_once_and_bodies_not_before(world, server, tmp_path):
    _, cells = pinned_and_cells(world, server, tmp_path)
    assert len(cells) == world.articles.num_shards == 7
    assert not [p for p in tmp_path.rglob("body*") if p.is_file()]
    before = server.fetched("")
    there = ShardSet.open(f"{server.url}/articles", cache=settings(tmp_path))
    TokenColumn.open(there).batch("title", np.arange(100), 10)
    assert server.fetched("") - before == 2  # the manifest and the list of columns
    TokenColumn.open(there).batch("body", np.arange(20), 10)
    assert len([p for p in tmp_path.rglob("body.values*") if p.is_file()]) == 2


def test_columns_made_here_stay_and_are_read_beside_those_there(world, server, tmp_path):
    there = ShardSet.open(f"{server.url}/articles", cache=settings(tmp_path))
    writer = ColumnWriter(there, "teacher-v", {"weights": "x"})
    for shard in writer.missing():
        rows = np.array(there.rows_of(shard), np.float32)
        writer.write(shard, {"v": rows})
    assert ColumnWriter(there, "teacher-text", {"weights": "abc"}).missing() == []
    again = ShardSet.open(f"{server.url}/articles", cache=settings(tmp_path))
    read = ColumnReader.open(again, "teacher-v", {"weights": "x"})
    assert read.gather("v", np.arange(100)).tolist() == list(range(100))
    assert writer.folder.is_relative_to(tmp_path)
    assert not (world.articles.columns_dir / writer.folder.name).exists()


def test_a_column_made_here_after_it_was_removed_there_stays(world, server, tmp_path):
    def opened():
        return ShardSet.open(f"{server.url}/articles", cache=settings(tmp_path))

    there = ColumnWriter(world.articles, "teacher-gone", {"weights": "y"}).folder
    name = opened().columns_dir / there.name / "column.json"
    assert name.is_file()
    (there / "column.json").unlink()
    there.rmdir()
    here = opened()
    assert not name.exists()
    writer = ColumnWriter(here, "teacher-gone", {"weights": "y"})
    for shard in writer.missing():
        writer.write(shard, {"v": np.array(here.rows_of(shard), np.float32)})
    read = ColumnReader.open(opened(), "teacher-gone", {"weights": "y"})
    assert read.gather("v", np.arange(100)).tolist() == list(range(100))


def test_without_listings_a_column_is_found_by_its_name(world, server, tmp_path):
    server.faults.has_listings = False
    there = ShardSet.open(f"{server.url}/articles", cache=settings(tmp_path))
    tokens = TokenColumn.open(there, world.tokens.folder.name)
    assert (tokens.tokenizer_dir / "tokenizer.json").is_file()
    assert ColumnReader.open(there, "teacher-text", {"weights": "abc"}).num_rows == 100


def test_a_set_of_an_earlier_run_leaves_first_when_none_has_it_open(world, server, tmp_path):
    import subprocess
    import sys

    program = (
        "import sys; from shards.reader import ShardSet; from shards.tokens import TokenColumn;"
        "from shards.cache import CacheSettings;"
        "TokenColumn.open(ShardSet.open(sys.argv[1], cache=CacheSettings(sys.argv[2])))"
    )
    words = [sys.executable, "-c", program, f"{server.url}/articles", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(words, check=True, env=environment)
    held = sum(p.stat().st_size for p in tmp_path.rglob("fetched/*"))
    measured = ShardSet.open(f"{server.url}/clicks", cache=settings(tmp_path / "measure"))
    ClickColumn.open(measured)
    room = measured.mirror.cache.total() + held // 2
    clicks = ShardSet.open(f"{server.url}/clicks", cache=settings(tmp_path, max_bytes=room))
    ClickColumn.open(clicks)
    left = sum(p.stat().st_size for p in tmp_path.glob("articles*/*/columns/*/fetched/*"))
    assert clicks.mirror.cache.total() <= room and left < held


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("ftp://host/set", "from folders and from s3://"),
        ("simplecache::s3://b/set", "from folders and from s3://"),
        ("https://me:secret@host/set", "do not belong in a URL"),
        ("https://host/set?token=1", "expected the prefix"),
        ("s3:///set", "expected the prefix"),
    ],
)
def test_urls_that_are_refused(url, what):
    with pytest.raises(UsageError, match=what) as refused:
        check_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["s3://ID:secret@bucket/c", "https://host/c?token=secret", "s3:/b"])
def test_a_cache_is_a_folder_of_this_machine(url, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TNR_CACHE", url)
    for settings, setting in ((CacheSettings(), "TNR_CACHE"), (CacheSettings(url), "data.cache_d")):
        with pytest.raises(UsageError, match=rf"^{setting}.* expected a folder on this") as refused:
            Cache(settings)
        assert "secret" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"gcsfs, which is not installed.*tiny-newsrec\[gcs\]"):
        ShardSet.open("gs://bucket/set")


@pytest.mark.parametrize("window_shards", [1, 2, 7, 50])
def test_the_windows_ahead_are_those_that_are_read(window_shards):
    counts = [5, 0, 3, 8, 0, 1, 4]
    order = EpochOrder(counts, "f", seed=1, window_shards=window_shards)
    for total in range(0, 3 * order.num_units):
        windows = order.windows_from(order.position_at(total))
        rows, _ = order.span(total, total + 1)
        shards = np.searchsorted(order.shard_starts, rows, side="right") - 1
        first, second = next(windows), next(windows)
        assert int(shards[0]) in first and sum(counts[s] for s in second) > 0


def test_fewer_shards_than_a_window_and_than_what_is_fetched_ahead(world, server, tmp_path):
    config = config_of(world, server, tmp_path, data__fetch_ahead=100)
    data = build(replace(config, data=replace(config.data, window_shards=50))).data
    stream = Stream(data.order, 8)
    for _ in range(30):
        data.collate(next(stream))


def test_bodies_come_ahead_of_their_rows(world, server, tmp_path):
    data = build(config_of(world, server, tmp_path, data__fetch_ahead=2)).data
    data.collate(next(Stream(data.order, 8)))
    windows = data.order.windows_from(data.order.position_at(8))
    wanted = {f"news-{shard:06d}" for shard in [*next(windows), *next(windows)][:4]}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        here = {p.name.rpartition("@")[2] for p in tmp_path.rglob("body.values@*")}
        if here >= wanted:
            return
        time.sleep(0.02)
    raise AssertionError(f"{sorted(wanted)} wanted, {sorted(here)} came")


def test_teacher_columns_over_a_url_are_written_and_trained_on_here(
    world, server, tmp_path, monkeypatch
):
    teacher, url = world.teacher("post_train", 5), f"{server.url}/articles"
    monkeypatch.setenv("TNR_CACHE", str(tmp_path / "cache"))
    done = tnr("teachers", "cache", "--stage", 1, "--articles", url, "--models", teacher)
    assert done.returncode == 0, done.stderr
    assert f"missing columns of {url} are written to {tmp_path}" in done.stdout
    config = world.config(
        "post_train_distill",
        data__articles=url,
        data__cache_dir=str(tmp_path / "cache"),
        teachers__models=[teacher],
    )
    data = build(config).data
    batch = data.collate(next(Stream(data.order, 8))).batch
    assert batch.teachers.bodies[0].shape == (8, 12)


def test_stored_logits_come_with_the_shards_of_their_bodies(world, server, tmp_path):
    """Without the embedding loss a batch reads them and nothing else of its teacher."""
    teacher, url = world.teacher("post_train", 6), f"{server.url}/articles"
    stored = {"teachers__models": [teacher], "teachers__logits": "stored", "loss__embedding": 0.0}
    here = world.config("post_train_distill", data__window_shards=1, **stored)
    fill([teacher], FillRequest(articles=world.articles, impressions=None), lambda line: None)
    logits = stored_logits(here, open_sources(here))
    fill_logits(logits, (0, 1), lambda line: None, StopRequest())
    there = {"data__articles": url, "data__cache_dir": str(tmp_path), "data__fetch_ahead": 0}
    config = world.config("post_train_distill", data__window_shards=1, **stored, **there)
    data, expected = build(config).data, build(here).data
    assert not list(tmp_path.rglob("body.scores@*"))
    rows = next(Stream(data.order, 8))
    (scores,), (wanted,) = (one.collate(rows).batch.teachers.scores for one in (data, expected))
    np.testing.assert_array_equal(scores, wanted)
    came = {path.name.rpartition("@")[2] for path in tmp_path.rglob("body.scores@*")}
    assert came == {f"news-{data.order.shards_of_window(0, 0)[0]:06d}"}
    assert not list(tmp_path.rglob(f"{TextVectors.name}-*/*/title@*"))
