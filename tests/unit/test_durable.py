"""What is published survives a power cut: fsync the file, rename, fsync the folder, in this order.

A power cut cannot be made in a test; the calls and their order can be recorded.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shards.files import atomic_file, write_json_atomic
from trainer.checkpoint.hashed import HashedFile, write_hashed_json
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.tensors import write_tensors

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
        after = [path for what, path in events[place:] if what == "fsync"]
        assert any(path == source or path.startswith(f"{source}/") for path in before), events
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


def test_a_hashed_file_is_flushed_before_it_is_synced(tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(os.fstat(number).st_size))
    with HashedFile(tmp_path / "one") as file:
        file.write(b"content")
    assert seen == [7]


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
