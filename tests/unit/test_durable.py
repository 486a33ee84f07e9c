"""What is published survives a power cut: fsync the file, rename, fsync the folder, in this order.

A power cut cannot be made in a test; the calls and their order can be recorded.
"""

import fnmatch
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.corpora import articles
from helpers.foreign_tars import text_tars
from helpers.inprocess import train
from helpers.sets import make_articles
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, tiny_model

from shards.cache import Cache, CacheSettings
from shards.cells import record_path, write_cell
from shards.column_folders import remove_folder
from shards.columns import ColumnWriter
from shards.files import atomic_file, write_json_atomic
from shards.foreign import index_tars
from shards.tokenizer import publish_tokenizer, train_tokenizer
from shards.writer import ShardWriter
from trainer.checkpoint.hashed import HashedFile, write_hashed_json
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.tensors import write_tensors
from trainer.cli.writing import new_folder
from trainer.export.folder import export_model
from trainer.models.build import build_news_encoder
from trainer.monitor.metrics import MetricsFile, cut_back

Event = tuple[str, str]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Event]:
    """Calls of fsync and rename with their paths below the test's folder, in order."""
    found: list[Event] = []
    inner: dict[str, Callable[..., None]] = {n: getattr(os, n) for n in ("rename", "replace")}
    fsync = os.fsync

    def below(path: object) -> str:
        return os.path.relpath(str(path), tmp_path)

    def record_fsync(descriptor: int) -> None:
        found.append(("fsync", below(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def moves(name: str) -> Callable[..., None]:
        def move(source: object, target: object, **options: object) -> None:
            inner[name](source, target, **options)
            found.append(("rename", f"{below(source)} {below(target)}"))

        return move

    monkeypatch.setattr(os, "fsync", record_fsync)
    for name in inner:
        monkeypatch.setattr(os, name, moves(name))
    return found


def check_durable(events: list[Event]) -> None:
    """Every rename has its content synced before, and its folder after."""
    renames = [
        (place, path.split()) for place, (what, path) in enumerate(events) if what != "fsync"
    ]
    assert renames
    for place, (source, target) in renames:
        before = [path for what, path in events[:place] if what == "fsync"]
        names = {source}  # a file that was moved before was synced under a former name
        for what, path in reversed(events[:place]):
            if what == "rename" and path.split()[1] in names:
                names.add(path.split()[0])
        after = [path for what, path in events[place:] if what == "fsync"]
        assert any(p == name or p.startswith(f"{name}/") for p in before for name in names), events
        folder = str(Path(target).parent)
        assert folder in after, (target, events)


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_an_atomic_file_is_synced_renamed_and_its_folder_synced(tmp_path, events, mode) -> None:
    with atomic_file(tmp_path / "final", mode) as file:
        file.write("x" if mode == "w" else b"x")
    (first, source), (second, moved), (third, folder) = events
    assert (first, second, third) == ("fsync", "rename", "fsync")
    assert moved == f"{source} final"
    assert folder == "."


def test_json_is_published_the_same_way(tmp_path, events) -> None:
    write_json_atomic(tmp_path / "a.json", {})
    assert [what for what, _ in events] == ["fsync", "rename", "fsync"]
    check_durable(events)


def test_hashed_files_are_synced_once_they_are_whole(tmp_path, events) -> None:
    sizes: list[int] = []
    with HashedFile(tmp_path / "one") as file:
        file.write(b"content")
        assert events == []
    sizes.append((tmp_path / "one").stat().st_size)
    write_hashed_json(tmp_path / "two", {})
    write_tensors(tmp_path, {"a": torch.ones(3)}, {})
    names = ["one", "two", "model.safetensors", "optimizer.safetensors"]
    assert events == [("fsync", name) for name in names]
    assert sizes == [7]


@pytest.mark.parametrize("open_file", [HashedFile, atomic_file])
def test_a_file_is_flushed_before_it_is_synced(tmp_path, monkeypatch, open_file) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(os.fstat(number).st_size))
    with open_file(tmp_path / "one") as file:
        file.write(b"content")
    assert seen[0] == 7


def renames_to(events: list[Event], target: str) -> list[int]:
    """Places of the renames whose target matches a pattern."""
    return [
        place
        for place, (what, path) in enumerate(events)
        if what == "rename" and fnmatch.fnmatchcase(path.split()[1], target)
    ]


def check_comes_last(events: list[Event], last: str) -> None:
    """What is there, by its name too, before the file is renamed that says that all is there."""
    (place,) = renames_to(events, last)
    folder = str(Path(last).parent)
    others = [at for at in renames_to(events, f"{folder}/*") if at != place]
    assert others and max(others) < place
    assert ("fsync", folder) in events[max(others) : place], events


def test_a_shard_set_is_on_the_disk_before_its_manifest(tmp_path, events) -> None:
    with ShardWriter(tmp_path / "set", "articles", samples_per_shard=4) as writer:
        for row in range(6):
            writer.add({"id": f"N{row}", "title": "Rain", "body": "It rains."})
        writer.refuse("in.csv", 7, "no title")
        writer.note("in.csv", 8, "no line end")
        writer.finish()
    check_durable(events)
    check_comes_last(events, "set/manifest.json")
    for name in ("news-*.tar", "news-*.idx", "refused.jsonl", "noted.jsonl"):
        assert renames_to(events, f"set/{name}"), events


def test_reports_of_a_build_are_flushed_before_they_are_synced(tmp_path, monkeypatch) -> None:
    seen: dict[str, int] = {}

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.setdefault(path.name, path.stat().st_size)

    monkeypatch.setattr(os, "fsync", record)
    with ShardWriter(tmp_path / "set", "articles") as writer:
        writer.add({"id": "N0", "title": "Rain", "body": "It rains."})
        writer.refuse("in.csv", 7, "no title")
        writer.note("in.csv", 8, "no line end")
        writer.finish()
    for name in ("refused.jsonl", "noted.jsonl"):
        assert seen[name] == (tmp_path / "set" / name).stat().st_size > 0


def test_an_indexed_set_is_on_the_disk_before_its_manifest(tmp_path, events) -> None:
    text_tars(tmp_path / "tars", articles(9))
    del events[:]
    index_tars([tmp_path / "tars"], out=tmp_path / "set")
    check_comes_last(events, "set/manifest.json")
    links = [path for path in (tmp_path / "set").iterdir() if path.is_symlink()]
    assert links
    for link in links:  # a link has no content to be synced
        (place,) = renames_to(events, f"set/{link.name}")
        del events[place]
    assert renames_to(events, "set/*.idx")
    check_durable(events)


def test_a_cell_is_on_the_disk_before_its_record(tmp_path, events) -> None:
    shard = make_articles(tmp_path / "set", 3).shards[0]
    del events[:]
    (tmp_path / "column").mkdir()
    write_cell(tmp_path / "column", "c" * 64, shard, {"a": np.zeros(3, dtype=np.float32)})
    check_durable(events)
    check_comes_last(events, f"column/{record_path(tmp_path, shard).name}")


def test_a_column_has_left_for_good_before_its_files_go(tmp_path, events, monkeypatch) -> None:
    shard_set = make_articles(tmp_path / "set", 3)
    writer = ColumnWriter(shard_set, "one", {"seed": 1})
    rmtree = shutil.rmtree

    def remove(path: Path) -> None:
        events.append(("remove", str(path.relative_to(tmp_path))))
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", remove)
    del events[:]
    assert remove_folder(shard_set, writer.folder)
    (first, moved), second, (third, removed) = events
    source, target = moved.split()
    assert (first, source) == ("rename", str(writer.folder.relative_to(tmp_path)))
    assert second == ("fsync", "set/columns")
    assert (third, removed) == ("remove", target)


@pytest.mark.parametrize("way", ["file", "write"])
def test_what_comes_into_the_cache_is_durable(tmp_path, events, way) -> None:
    cache = Cache(CacheSettings(str(tmp_path / "cache")))
    path = cache.folder / "set" / "version" / "news-000000.tar"
    with cache.fetching(path):
        if way == "write":
            cache.write(path, b"content")
        else:
            with cache.file(path, 7) as temporary:
                temporary.write_bytes(b"content")
    check_durable(events)
    assert len(events) == 3


class Saved:
    """Something whose ``save_pretrained`` writes and syncs nothing, as transformers' does."""

    def save_pretrained(self, folder: str | Path) -> None:
        (Path(folder) / "inner").mkdir(parents=True)
        for name in ("tokenizer.json", "model.safetensors", "inner/merges.txt"):
            (Path(folder) / name).write_text("content")


def check_folder_is_durable(events: list[Event], folder: Path) -> None:
    """Every file and folder in it was synced before the folder was given its name."""
    check_durable(events)
    (place,) = renames_to(events, folder.name)
    source = events[place][1].split()[0]
    synced = [path for what, path in events[:place] if what == "fsync"]
    for path in (folder, *folder.rglob("*")):
        assert os.path.normpath(f"{source}/{path.relative_to(folder)}") in synced, (path, events)


def test_a_published_tokenizer_is_durable(tmp_path, events) -> None:
    publish_tokenizer(Saved(), tmp_path / "tokenizer")  # type: ignore[arg-type]
    check_folder_is_durable(events, tmp_path / "tokenizer")


def test_a_trained_tokenizer_is_durable(tmp_path, events) -> None:
    shard_set = make_articles(tmp_path / "set", 60)
    del events[:]
    train_tokenizer(shard_set, tmp_path / "tokenizer", vocab_size=60)
    check_folder_is_durable(events, tmp_path / "tokenizer")


def test_an_export_is_durable_also_where_another_stood(tmp_path, events) -> None:
    model = build_news_encoder(tiny_model(), vocab_size=VOCAB_SIZE, pad_id=PAD_ID)
    (tmp_path / "of").mkdir()
    (tmp_path / "of" / "vocab.txt").write_text("a")
    for _ in range(2):
        del events[:]
        export_model(model, tmp_path / "export", tmp_path / "of", {})
        events[:] = [event for event in events if ".old-" not in event[1]]
        check_folder_is_durable(events, tmp_path / "export")


def test_a_folder_that_a_command_makes_is_durable(tmp_path, events) -> None:
    with new_folder(tmp_path / "out") as folder:
        Saved().save_pretrained(folder / "model")
    check_folder_is_durable(events, tmp_path / "out")


def test_metrics_are_in_the_file_at_once_and_on_the_disk_when_synced(tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(os.fstat(number).st_size))
    metrics = MetricsFile(tmp_path, 0)
    metrics.write({"step": 1})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    metrics.sync()
    metrics.close()
    assert seen == [size] and size > 0


def test_metrics_that_are_cut_back_are_replaced_whole(tmp_path, events) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert cut_back(tmp_path / "metrics.jsonl", 1) == [{"step": 1}]
    check_durable(events)
    assert renames_to(events, "metrics.jsonl")


def test_metrics_are_on_the_disk_before_a_checkpoint_that_follows_them(tmp_path, events) -> None:
    train(tmp_path / "run", run__max_steps=6, run__checkpoint_every=3)
    places = [renames_to(events, f"run/checkpoints/step_0000000{n}")[0] for n in (3, 6)]
    for begin, end in zip((0, places[0]), places, strict=True):
        assert ("fsync", "run/metrics.jsonl") in events[begin:end]


def test_a_checkpoint_is_whole_on_the_disk_before_it_has_its_name(tmp_path, events) -> None:
    store = CheckpointStore(tmp_path / "run", Retention(newest=1), print)

    def write(folder: Path):
        return write_tensors(folder, {"a": torch.ones(3)}, {"a/exp_avg": torch.ones(3)})

    for step in (5, 6):
        del events[:]
        store.save(step, {}, write)
        name = f"step_{step:08d}"
        (published,) = [i for i, (_, path) in enumerate(events) if path.endswith(f" run/{name}")]
        building = events[published][1].split()[0]
        synced = [path for what, path in events[:published] if what == "fsync"]
        for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
            assert f"{building}/{file}" in synced
        assert synced[-1] == building, "the manifest's own name lies in this folder"
        manifest = [path for what, path in events[:published] if what == "rename"][-1]
        assert manifest.endswith(f"{building}/manifest.json")
        assert manifest.split()[0] in synced
        assert events[published + 1] == ("fsync", "run")
        pointer = [i for i, (_, path) in enumerate(events) if path.endswith(" run/latest")]
        assert pointer and pointer[0] > published + 1
        publishing = [event for event in events if ".deleting-" not in event[1]]
        check_durable(publishing)
    assert store.steps() == [6]


def test_the_folder_of_the_first_checkpoint_is_itself_durable(tmp_path, events) -> None:
    store = CheckpointStore(tmp_path / "run", Retention(newest=1), print)
    store.save(1, {}, lambda folder: {})
    assert events[0] == ("fsync", ".")
