"""An exported model's folder: what goes into it, and what a kill or a full disk leaves."""

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, tiny_model

from shards.errors import DamageError
from shards.files import read_json
from trainer.cli.main import main
from trainer.errors import ModelError
from trainer.export.folder import export_model, load_export
from trainer.export.info import sealed
from trainer.models.build import build_news_encoder
from trainer.models.news_encoder import NewsEncoder
from trainer.recipes.init import settings_of_export
from trainer.teacher_server.kinds.base import teacher_identity


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


LAST_K = {"news_dim": 16, "user_encoder": "last_k_mean"}
SAID = {
    "tokenizer_sha256": "a" * 64, "news_text": [["title", 10]], "max_title_tokens": 10,
    "max_body_tokens": 20, "history_length": 5, "pad_to_max": False,
    "model_settings": {"pooling": "attention", "pooling_mask": True, "news_dim": 16},
}  # fmt: skip


@pytest.fixture
def exported(encoder: NewsEncoder, tmp_path: Path) -> Path:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    return export_model(encoder, tmp_path / "export", tokenizer, SAID).folder


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["tnr.json", "config.json", "tokenizer.json"])
def test_an_edit_of_an_exported_file_is_named(exported: Path, name: str) -> None:
    edit(exported / name, max_title_tokens=11)
    for opening in (load_export, lambda folder: settings_of_export(str(folder), reads_clicks=True)):
        with pytest.raises(DamageError) as caught:
            opening(exported)
        assert f"{exported / name} was edited after the export: export the" in str(caught.value)


def test_a_missing_file_is_named_and_one_more_does_no_harm(exported: Path) -> None:
    (exported / "README.md").write_text("mine")
    load_export(exported).load_model()
    (exported / "tokenizer.json").unlink()
    with pytest.raises(DamageError, match=r"tokenizer\.json is missing, which was in the export"):
        load_export(exported)


def test_an_export_of_an_export_is_sealed_anew(encoder: NewsEncoder, exported: Path) -> None:
    info = read_json(exported / "tnr.json", dict)
    again = export_model(encoder, exported.with_name("again"), None, info)
    assert set(again.info["files"]) == {"config.json"}
    assert load_export(again.folder).info == again.info


def test_an_older_export_is_read_and_keeps_its_identity(exported: Path) -> None:
    """Columns that were filled before exports had a seal stay those of their teacher."""
    sealed = load_export(exported)
    info = read_json(exported / "tnr.json", dict)
    unsealed = {key: info[key] for key in info if key not in ("files", "fingerprint")}
    (exported / "tnr.json").write_text(json.dumps(unsealed))
    older = load_export(exported)
    older.load_model()
    assert teacher_identity(older) == teacher_identity(sealed) == {
        "format": 1,
        "teacher_weights_sha256": sealed.weights_sha256,
        "teacher_kind": "news_encoder",
        "model_settings": SAID["model_settings"],
        "tokenizer_sha256": "a" * 64,
        "max_title_tokens": 10,
        "pad_to_max": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"max_title_tokens": -5}, "max_title_tokens"),
        ({"max_title_tokens": 10**9}, "max_title_tokens"),
        ({"max_body_tokens": 0}, "max_body_tokens"),
        ({"history_length": 0}, "history_length"),
        ({"history_length": None, "kind": "recommender"}, "history_length"),
        ({"news_text": [["headline", 10]]}, "news_text"),
        ({"news_text": [["title", 10**9]]}, "news_text"),
        ({"tokenizer_sha256": "a" * 63}, "tokenizer_sha256"),
        ({"weights_sha256": "../x"}, "weights_sha256"),
        ({"kind": "other"}, "kind"),
        ({"model_settings": {"news_dim": 16, "pooling": "max"}}, "pooling"),
        ({"model_settings": {"news_dim": 10**9}}, "news_dim"),
        ({"model_settings": {"pooling": "mean"}}, "news_dim"),
        ({"model_settings": LAST_K | {"user_last_k": 0}}, "user_last_k"),
        ({"model_settings": LAST_K | {"user_encoder": "gru"}}, "user_encoder"),
    ],
)
def test_values_that_no_export_has_are_refused_by_place(
    exported: Path, changes: dict[str, object], place: str
) -> None:
    """Behind the seal, and in older exports, which have none."""
    info = read_json(exported / "tnr.json", dict) | changes
    for seal in (True, False):
        info = sealed(info, exported) if seal else info | {"fingerprint": None}
        (exported / "tnr.json").write_text(json.dumps(info))
        with pytest.raises(DamageError, match=rf"tnr\.json is damaged or was edited: .*{place}"):
            load_export(exported)


def test_a_newer_format_is_told_as_one(exported: Path) -> None:
    edit(exported / "tnr.json", format=2, kind="another")
    with pytest.raises(ModelError, match="format 2, expected 1"):
        load_export(exported)


@contextlib.contextmanager
def fewer_bytes(limit: int) -> Iterator[None]:
    """No file of this process grows beyond ``limit`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
