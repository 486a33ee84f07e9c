"""Checkpoint folders: published whole, found by name, kept and deleted in the right order."""

import errno
import json
import os

import pytest

from shards.files import read_json
from trainer.checkpoint.hashed import HashedFile
from trainer.checkpoint.retention import Retention, retention_of
from trainer.checkpoint.store import CheckpointStore
from trainer.errors import CheckpointError
from trainer.recipes.load import from_settings


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def store(tmp_path, warnings):
    return CheckpointStore(tmp_path / "checkpoints", Retention(newest=2), warnings.append)


def save(store, step, content=b"weights", **state):
    def write(folder):
        with HashedFile(folder / "model.bin") as file:
            file.write(content)
        return {"model.bin": file.entry}

    return store.save(step, {"note": step, **state}, write)


def test_saved_checkpoint_is_found_with_its_state(store, warnings):
    assert store.find() is None
    folder = save(store, 5)
    found = store.find()
    assert (found.folder, found.step, found.state["note"]) == (folder, 5, 5)
    assert set(read_json(folder / "manifest.json")["files"]) == {"model.bin", "state.json"}
    assert (store.folder / "latest").read_text() == "step_00000005\n"
    assert warnings == []


def test_only_the_newest_are_kept_and_nothing_hidden_stays(store):
    for step in (5, 10, 15, 100_000_000):
        save(store, step)
    assert store.steps() == [15, 100_000_000]
    assert sorted(p.name for p in store.folder.iterdir()) == [
        "latest",
        "step_00000015",
        "step_100000000",
    ]


def test_same_step_is_replaced(store):
    save(store, 5, b"old")
    save(store, 5, b"new")
    assert (store.find().folder / "model.bin").read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_refusing_disk_is_an_error_and_earlier_ones_are_intact(store, number):
    save(store, 5)

    def refuse(folder):
        (folder / "model.bin").write_bytes(b"half")
        raise OSError(number, "the disk refused")

    with pytest.raises(CheckpointError, match=r"step 10 .*the disk refused.*intact"):
        store.save(10, {}, refuse)
    assert store.steps() == [5]
    assert store.find().step == 5
    assert sorted(p.name for p in store.folder.iterdir()) == ["latest", "step_00000005"]


def test_error_of_the_writer_itself_leaves_nothing(store):
    def fail(folder):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        store.save(5, {}, fail)
    assert list(store.folder.iterdir()) == []


def test_leftovers_of_killed_saves_and_deletions_are_removed(store):
    save(store, 5)
    for name in (".step_00000010.tmp-1-ab", ".deleting-step_00000001-cd"):
        (store.folder / name).mkdir()
        (store.folder / name / "model.bin").write_bytes(b"half")
    for name in (".latest.tmp-1-ab", ".best.tmp-1-ab"):
        (store.folder / name).write_text("step_")
    assert store.find().step == 5
    assert sorted(p.name for p in store.folder.iterdir()) == ["latest", "step_00000005"]


@pytest.mark.parametrize("latest", [None, "", "nonsense\n", "step_00000005\n"])
def test_folders_decide_and_latest_is_repaired(store, warnings, latest):
    save(store, 5)
    save(store, 10)
    if latest is None:
        (store.folder / "latest").unlink()
    else:
        (store.folder / "latest").write_text(latest)
    assert store.find().step == 10
    assert (store.folder / "latest").read_text() == "step_00000010\n"
    assert bool(warnings) == (not latest)


def test_newest_that_is_gone_is_said(store, warnings):
    save(store, 5)
    (store.folder / "latest").write_text("step_00000010\n")
    assert store.find().step == 5
    assert "step_00000010, which is missing; continuing from" in warnings[0]


def test_all_gone_is_an_error_not_a_fresh_start(store):
    store.folder.mkdir()
    (store.folder / "latest").write_text("step_00000010\n")
    with pytest.raises(CheckpointError, match="holds none"):
        store.find()


def test_a_state_of_another_step_is_not_its_own(store):
    save(store, 5).rename(store.path(7))
    with pytest.raises(
        CheckpointError, match=r"step_00000007 is .*state\.json belongs to another checkpoint"
    ):
        store.verify(7)


def test_a_state_that_the_manifest_does_not_list_is_not_its_own(store):
    manifest = save(store, 5) / "manifest.json"
    files = read_json(manifest)["files"]
    del files["state.json"]
    manifest.write_text(json.dumps({"format": 1, "files": files}))
    with pytest.raises(CheckpointError, match=r"state\.json belongs to another checkpoint"):
        store.verify(5)


@pytest.mark.parametrize("content", [b"weight", b"weights!"])
def test_a_file_of_another_size_is_named_with_both_sizes(store, content):
    (save(store, 5) / "model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.bin has {len(content)} bytes.* 7"):
        store.verify(5)


def test_format_of_the_future_is_refused(store, monkeypatch):
    monkeypatch.setattr("trainer.checkpoint.store.FORMAT", 2)
    save(store, 5)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2"):
        store.find()


def named(store, pointer):
    path = store.folder / pointer
    return path.read_text().strip() if path.exists() else None


def test_multiples_stay_for_good_beside_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, Retention(newest=1, every=20), print)
    for step in range(10, 80, 10):
        save(store, step)
    assert store.steps() == [20, 40, 60, 70]


@pytest.mark.parametrize(("best_is", "expected"), [("lowest", 10), ("highest", 25)])
def test_the_best_by_recorded_values_stays_and_is_named(tmp_path, best_is, expected):
    """Ties go to the earlier one; a value that is missing or of another metric is none."""
    retention = Retention(newest=1, metric="train/loss", best_is=best_is)
    store = CheckpointStore(tmp_path, retention, print)
    save(store, 1)
    assert named(store, "best") is None
    for step, value in ((5, 0.5), (10, 0.25), (15, 0.25), (20, None), (25, 0.75), (30, 0.5)):
        save(store, step, metric={"name": "train/loss", "value": value})
    save(store, 35, metric={"name": "train/accuracy", "value": 0.0})
    assert store.steps() == [expected, 35]
    assert named(store, "best") == f"step_{expected:08d}"
    assert named(store, "latest") == "step_00000035"
    # Decided anew from what is recorded, whatever the file says.
    (tmp_path / "best").write_text("step_00000035\n")
    assert store.find().step == 35
    assert named(store, "best") == f"step_{expected:08d}"
    without = CheckpointStore(tmp_path, Retention(newest=1), print)
    save(without, 40)
    assert (without.steps(), named(without, "best")) == ([40], None)


def test_a_damaged_later_one_is_neither_best_nor_counted_as_newest(tmp_path):
    """Going on from before a damaged checkpoint must not delete what it went on from."""
    store = CheckpointStore(tmp_path, Retention(newest=1, metric="m"), lambda line: None)
    save(store, 5, metric={"name": "m", "value": 2.0})
    keep_all = CheckpointStore(tmp_path, Retention(newest=9), print)
    newest = save(keep_all, 10, metric={"name": "m", "value": 1.0})
    (newest / "model.bin").write_bytes(b"damaged")
    assert store.find().step == 5
    assert named(store, "best") == "step_00000005"
    save(store, 6, metric={"name": "m", "value": 3.0})
    assert 6 in store.steps()
    assert store.find().step == 6


def test_the_rules_are_those_of_the_settings_and_validation_decides_where_there_is_one():
    given = {"task": "finetune", "run.keep_checkpoints": 3, "run.keep_every": 40}
    given |= {"run.best_metric": "train/loss", "run.best_is": "lowest"}
    rules = retention_of(from_settings(given, where="test"))
    assert rules == Retention(newest=3, every=40, metric="train/loss", best_is="lowest")
    given |= {"validation.clicks": "sets/dev", "validation.metric": "mrr"}
    rules = retention_of(from_settings(given, where="test"))
    assert rules == Retention(newest=3, every=40, metric="valid/mrr", best_is="highest")


def test_values_that_are_not_numbers_of_the_metric_count_for_nothing():
    rules = Retention(newest=1, metric="loss")
    assert rules.value({"metric": {"name": "loss", "value": 2}}) == 2.0
    for entry in (
        {"name": "auc", "value": 2.0},
        {"name": "loss", "value": float("nan")},
        {"name": "loss", "value": float("-inf")},
        {"name": "loss", "value": "2"},
        None,
    ):
        assert rules.value({"metric": entry}) is None
    assert Retention(newest=1).value({"metric": {"name": "loss", "value": 2.0}}) is None
    assert rules.best({10: 2.0, 5: 2.0, 15: 3.0}) == 5  # the earlier of equals


@pytest.mark.timeout(20)
def test_a_fifo_in_a_checkpoints_place_makes_way(store, warnings):
    save(store, 5)
    for step in (10, 15):
        os.mkfifo(store.path(step))
    assert store.find().step == 5
    assert len(warnings) == 2
    for step in (15, 20):
        save(store, step)
    assert store.steps() == [15, 20]
    assert all(path.is_dir() or path.name == "latest" for path in store.folder.iterdir())
