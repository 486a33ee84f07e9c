"""Files of a checkpoint belong to its run and its step; hashes in a manifest do not say so (B2)."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.inprocess import train, train_until_crash, weights
from helpers.launch import metrics
from safetensors.torch import load_file, save_file

from shards.files import read_json, sha256_file
from trainer.checkpoint.binding import BOUND, bind, binding_of, check_bound, read_metadata
from trainer.errors import CheckpointError, DataError

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 5 and 10 that crashed in step 14."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train_until_crash(folder, 13)
    return folder


@pytest.fixture(scope="module")
def another(tmp_path_factory) -> Path:
    """The same with another learning rate."""
    folder = tmp_path_factory.mktemp("another") / "run"
    train_until_crash(folder, 13, optimizer__lr=0.02)
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step_{number:08d}"


def rewrite_manifest(folder: Path, *left_out: str) -> None:
    """Let the manifest say that all files are as they should be."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
        if path.name not in ("manifest.json", *left_out)
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


def forget_binding(folder: Path) -> None:
    """Make a checkpoint what earlier versions wrote."""
    for name in (MODEL, OPTIMIZER):
        save_file(load_file(folder / name), folder / name)
    state = read_json(folder / STATE)
    del state[BOUND]
    (folder / STATE).write_text(json.dumps(state))
    rewrite_manifest(folder)


def passed_over(run: Path, whole: Path, capsys) -> str:
    """The reason why the newest is passed over; the run ends as one that was never touched."""
    train(run)
    said = capsys.readouterr().out
    assert "step 5 to 20" in said
    assert weights(run / "export") == weights(whole / "export")
    (line,) = [line for line in said.splitlines() if "checkpoint skipped" in line]
    return line


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a6_a_file_of_another_step_is_named(run, whole, capsys, name) -> None:
    shutil.copy(step(run, 5) / name, step(run, 10) / name)
    rewrite_manifest(step(run, 10))
    assert f"{name} belongs to another step: 5, expected 10" in passed_over(run, whole, capsys)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a6_a_file_of_another_run_is_named(run, whole, another, capsys, name) -> None:
    shutil.copy(step(another, 10) / name, step(run, 10) / name)
    rewrite_manifest(step(run, 10))
    assert f"{name} belongs to another run (settings" in passed_over(run, whole, capsys)


@pytest.mark.parametrize("key", ["position", "backend", "step"])
def test_a6_a_state_of_another_step_is_named(run, whole, capsys, key) -> None:
    state, other = read_json(step(run, 10) / STATE), read_json(step(run, 5) / STATE)
    if key == "step":
        state = other | {"step": 10}
    else:
        state[key] = other[key]
    (step(run, 10) / STATE).write_text(json.dumps(state))
    rewrite_manifest(step(run, 10))
    assert "belongs to another state.json" in passed_over(run, whole, capsys)


@pytest.mark.parametrize(
    "bound", [None, [], {}, {"files": "x", "run": 1}, {"files": ["../x"], "run": ""}]
)
def test_a6_a_binding_that_was_edited_is_named(run, whole, capsys, bound) -> None:
    state = read_json(step(run, 10) / STATE) | {BOUND: bound}
    (step(run, 10) / STATE).write_text(json.dumps(state))
    rewrite_manifest(step(run, 10))
    assert "incomplete or damaged" in passed_over(run, whole, capsys)


def test_a6_a_whole_checkpoint_of_another_step_is_named(run, whole, capsys) -> None:
    shutil.rmtree(step(run, 10))
    shutil.copytree(step(run, 5), step(run, 10))
    assert "state.json belongs to another checkpoint" in passed_over(run, whole, capsys)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("damage", ["missing", "cut", "header", "fifo"])
def test_a6_damage_with_a_manifest_that_was_rewritten_is_one_line(
    run, whole, capsys, name, is_old, damage
) -> None:
    folder = step(run, 10)
    if is_old:
        forget_binding(folder)
    if damage == "cut":
        os.truncate(folder / name, (folder / name).stat().st_size - 40)
    elif damage == "header":
        content = bytearray((folder / name).read_bytes())
        content[8:40] = b"[" * 32
        (folder / name).write_bytes(bytes(content))
    else:
        (folder / name).unlink()
    rewrite_manifest(folder)
    if damage == "fifo":
        os.mkfifo(folder / name)
    # An older state does not say which files there were; those that are there are looked into.
    if not is_old or damage in ("cut", "header"):
        assert name in passed_over(run, whole, capsys)
        return
    with pytest.raises(CheckpointError, match=name) as refused:
        train(run)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(run, whole, capsys) -> None:
    forget_binding(step(run, 10))
    train(run)
    assert "step 10 to 20" in capsys.readouterr().out
    assert metrics(run) == metrics(whole)
    assert weights(run / "export") == weights(whole / "export")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "[]"),
        ("manifest.json", '{"files": {"state.json": 3}}'),
        ("manifest.json", '{"files": {"state.json": {"bytes": "x", "sha256": 1}}}'),
        ("manifest.json", "[" * 100_000),
        (STATE, "[]"),
        (STATE, '{"step": "10", "format": 1}'),
        (STATE, '{"step": 10, "format": 1, "position": []}'),
        (STATE, '{"step": 10, "format": 1, "backend": {"updates": []}}'),
        (STATE, "{" * 100_000),
    ],
)
def test_a6_records_with_values_of_another_type_are_one_line(
    run, whole, capsys, name, content
) -> None:
    (step(run, 10) / name).write_text(content)
    if name == STATE:
        rewrite_manifest(step(run, 10))
    assert name in passed_over(run, whole, capsys)


@pytest.mark.parametrize(
    "change",
    [
        {"position": None},
        {"not_finite": [{"x": 1}]},
        {"config": None},
        {"config": {"run": {"max_steps": "many"}}},
        {"data": "x"},
    ],
)
def test_a6_a_state_of_an_earlier_version_that_was_edited_is_one_line(run, change) -> None:
    for number in (5, 10):
        forget_binding(step(run, number))
        state = read_json(step(run, number) / STATE)
        for key, value in change.items():
            if value is None:
                del state[key]
            else:
                state[key] = value
        (step(run, number) / STATE).write_text(json.dumps(state))
        rewrite_manifest(step(run, number))
    with pytest.raises(CheckpointError) as refused:
        train(run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["latest", "best", "step_00000010/manifest.json"])
def test_a4_a_fifo_among_the_checkpoints_is_not_waited_for(run, name) -> None:
    path = run / "checkpoints" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    train(run)


@pytest.mark.parametrize("name", ["state.json", "config.json", "log/train.log", "metrics.jsonl"])
def test_a4_a_fifo_in_the_run_folder_is_one_line(run, name) -> None:
    from trainer.errors import TrainingError

    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(TrainingError, match="is not a regular file"):
        train(run)


@pytest.mark.parametrize("said", ["nothing", "no files"])
def test_a6_a_state_that_no_longer_names_its_files(run, whole, capsys, said) -> None:
    shutil.copy(step(run, 5) / MODEL, step(run, 10) / MODEL)
    state = read_json(step(run, 10) / STATE)
    if said == "nothing":
        del state[BOUND]
    else:
        state[BOUND]["files"] = []
    (step(run, 10) / STATE).write_text(json.dumps(state))
    rewrite_manifest(step(run, 10))
    assert f"is mixed: {MODEL} belongs to another" in passed_over(run, whole, capsys)


def test_a6_a_length_that_no_run_has_is_one_line(run) -> None:
    state = read_json(step(run, 10) / STATE)
    state["config"]["run"]["epochs"] = 1e308
    (step(run, 10) / STATE).write_text(json.dumps(state))
    rewrite_manifest(step(run, 10))
    with pytest.raises(CheckpointError, match="the checkpoint's section run was edited"):
        train(run)


def test_what_may_change_plays_no_part_in_the_run_that_files_are_bound_to() -> None:
    def bound(folder: str, seed: int) -> str:
        config = {"run": {"dir": folder, "seed": seed}}
        return bind({"config": config, "data": "d"}, ["model.safetensors"])["bound"]["run"]

    assert bound("here", 1) == bound("there", 1) != bound("here", 2)


def test_a_file_that_the_manifest_lacks_is_named(tmp_path: Path) -> None:
    state = bind({"step": 1, "config": {}, "data": "d"}, ["model.safetensors"])
    metadata = binding_of(state)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata)
    check_bound(tmp_path, state, ["model.safetensors"])
    with pytest.raises(CheckpointError, match=r"its manifest does not list model\.safetensors"):
        check_bound(tmp_path, state, [])


def test_a_header_beyond_the_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match=r"a\.safetensors has 10 bytes, too few for its own header"):
        read_metadata(tmp_path / "a.safetensors")


@pytest.mark.parametrize("metadata", [True, None, "a", [1], {"step": 3}])
def test_metadata_of_another_type_are_one_line(tmp_path: Path, metadata: object) -> None:
    header = json.dumps({"__metadata__": metadata}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DataError, match=r"^a\.safetensors is damaged or was edited: Expected `"):
        read_metadata(path)
