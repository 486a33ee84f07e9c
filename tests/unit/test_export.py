"""An exported model's folder: what goes into it, and what a kill or a full disk leaves."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, tiny_model

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
