"""An exported model's folder: what goes into it, and what a kill or a full disk leaves."""

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
    (export / "gone").symlink_to(tmp_path / "nowhere")  # copying it fails after the other files
    out = tmp_path / "copies" / "out"
    assert f"tnr: error: {out} cannot be written: " in complaint(out)
    assert not list(out.parent.iterdir())
