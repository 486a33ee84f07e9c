"""An exported model's folder: what goes into it, and what a kill or a full disk leaves."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, tiny_model

from trainer.cli.main import main
from trainer.export.folder import export_model
from trainer.models import NewsEncoder, build_news_encoder


@pytest.fixture
def encoder() -> NewsEncoder:
    torch.manual_seed(0)
    return build_news_encoder(tiny_model(), vocab_size=VOCAB_SIZE, pad_id=PAD_ID)


def test_files_of_a_tokenizer_replace_none_of_the_models(
    encoder: NewsEncoder, tmp_path: Path
) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tnr.json"):
        (tokenizer / name).write_text("another's")
    export = export_model(encoder, tmp_path / "export", tokenizer, {})
    assert torch.equal(export.load_model().dense.weight, encoder.dense.weight)
    assert (export.folder / "tokenizer.json").read_text() == "another's"


def test_a_place_that_cannot_be_written_is_told_in_one_line_and_nothing_stays(
    encoder: NewsEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = export_model(encoder, tmp_path / "export", None, {}).folder

    def complaint(out: Path) -> str:
        assert main(["export", str(export), "--out", str(out)]) == 1
        return capsys.readouterr().err

    below_a_file = export / "config.json" / "out"
    assert f"tnr: error: {below_a_file} cannot be written: " in complaint(below_a_file)
    (export / "zz").symlink_to(tmp_path / "nowhere")  # it is met after the other files
    out = tmp_path / "copies" / "out"
    assert f"tnr: error: {export / 'zz'} is a link to {tmp_path / 'nowhere'}" in complaint(out)
    assert not list(out.parent.iterdir())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["fifo", "device", "secret", "folder"])
def test_only_files_of_the_export_are_copied(
    encoder: NewsEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    export = export_model(encoder, tmp_path / "export", None, {}).folder
    entry, secret = export / "onnx" / "notes.txt", tmp_path / "secret.txt"
    entry.parent.mkdir()
    secret.write_text("key")
    if what == "fifo":
        os.mkfifo(entry)
    else:
        targets = {"device": Path("/dev/zero"), "secret": secret, "folder": tmp_path}
        entry.symlink_to(targets[what])
    with fewer_bytes(1 << 20):  # a device would fill the disk
        assert main(["export", str(export), "--out", str(tmp_path / "out")]) == 1
    said = "is not a regular file" if what == "fifo" else "is a link to"
    assert f"tnr: error: {entry} {said}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_in_the_hugging_face_cache_is_links_to_its_blobs(
    encoder: NewsEncoder, tmp_path: Path
) -> None:
    made = export_model(encoder, tmp_path / "made", None, {}).folder
    blobs, snapshot = tmp_path / "models--a" / "blobs", tmp_path / "models--a" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    made.rename(blobs)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    assert main(["export", str(snapshot), "--out", str(tmp_path / "out")]) == 0
    copied = {path.name: path.is_symlink() for path in (tmp_path / "out").iterdir()}
    assert copied == dict.fromkeys((path.name for path in blobs.iterdir()), False)


@contextlib.contextmanager
def fewer_bytes(limit: int) -> Iterator[None]:
    """No file of this process grows beyond ``limit`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
