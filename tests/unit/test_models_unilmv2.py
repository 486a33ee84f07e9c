"""Conversion of released UniLMv2 weights, on a made-up checkpoint of their form."""

import os
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import released_unilmv2, tiny_model

from shards.tokenizer import load_tokenizer
from trainer.cli.main import main
from trainer.errors import ConfigError, ModelError
from trainer.models.build import build_news_encoder
from trainer.models.unilmv2 import convert_unilmv2, save_unilmv2
from trainer.recipes.load import load_config

WIDTH, HEADS, INNER, LAYERS = 16, 4, 24, 2


@pytest.fixture
def released() -> dict[str, torch.Tensor]:
    return released_unilmv2(WIDTH, HEADS, INNER, LAYERS)


def test_fused_attention_is_split_and_keys_get_no_bias(released):
    converted = convert_unilmv2(released)
    for number in range(LAYERS):
        stem = f"encoder.layer.{number}.attention.self"
        fused = released[f"bert.{stem}.qkv_linear.weight"]
        assert torch.equal(converted[f"{stem}.query.weight"], fused[:WIDTH])
        assert torch.equal(converted[f"{stem}.key.weight"], fused[WIDTH : 2 * WIDTH])
        assert torch.equal(converted[f"{stem}.value.weight"], fused[2 * WIDTH :])
        assert torch.equal(
            converted[f"{stem}.query.bias"], released[f"bert.{stem}.q_bias"].flatten()
        )
        assert torch.equal(
            converted[f"{stem}.value.bias"], released[f"bert.{stem}.v_bias"].flatten()
        )
        assert converted[f"{stem}.key.bias"].tolist() == [0.0] * WIDTH


def test_names_heads_and_table(released):
    converted = convert_unilmv2(released)
    assert torch.equal(
        converted["rel_pos_bias.weight"], released["bert.encoder.rel_pos_bias.weight"].T
    )
    assert torch.equal(
        converted["embeddings.LayerNorm.weight"], released["bert.embeddings.LayerNorm.gamma"]
    )
    assert not [name for name in converted if name.startswith(("bert.", "cls.", "pooler."))]


@pytest.fixture
def vocab(tmp_path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "news", "##es"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return path


def test_a_converted_folder_is_a_backbone_with_its_bias(released, vocab, tmp_path):
    torch.save(released, tmp_path / "unilm2.bin")
    folder = tmp_path / "made" / "unilmv2"
    words = ["convert", "unilmv2", "--weights", tmp_path / "unilm2.bin", "--vocab", vocab]
    assert main([str(word) for word in [*words, "--out", folder]]) == 0
    assert load_tokenizer(folder)("NEWSes")["input_ids"] == [2, 5, 6, 3]
    model = tiny_model({"name": str(folder), "layers": (0,)})  # the bias is not asked for
    encoder = build_news_encoder(model, vocab_size=50, pad_id=0)
    converted = convert_unilmv2(released)
    assert torch.equal(encoder.backbone.rel_pos_bias.weight, converted["rel_pos_bias.weight"])
    state = encoder.backbone.language_model.state_dict()
    assert all(torch.equal(value, converted[name]) for name, value in state.items())
    assert encoder.config.backbone.num_attention_heads == HEADS


def test_the_bias_left_out_is_what_the_weights_say(released, vocab, tmp_path):
    torch.save(released, tmp_path / "unilm2.bin")
    held = save_unilmv2(tmp_path / "unilm2.bin", vocab, tmp_path / "unilmv2")
    plain = tmp_path / "plain"
    build_news_encoder(
        tiny_model(), vocab_size=50, pad_id=0
    ).backbone.language_model.save_pretrained(plain)
    words = ["--data.articles", "a", "--run.dir", "r", "--model.backbone.name"]

    def settled(name, *more):
        config = load_config("post_train", [*words, str(name), *more])
        return config.model.backbone.relative_position_bias

    # What is recorded is what a run had before there was a choice, but for weights with a table.
    assert settled(held) is True
    assert [settled(name) for name in ("random", plain, "some/bert")] == [False] * 3
    assert settled(held, "--model.init", "runs/teacher/export") is False
    assert settled(plain, "--model.backbone.relative_position_bias", "true") is True
    with pytest.raises(ConfigError, match=r"relative_position_bias is false, but .*unilmv2"):
        settled(held, "--model.backbone.relative_position_bias", "false")


def test_other_checkpoints_are_refused(released, vocab, tmp_path):
    without_table = dict(released)
    del without_table["bert.encoder.rel_pos_bias.weight"]
    with pytest.raises(
        ModelError, match=r"not a UniLMv2 checkpoint: it does not have rel_pos_bias\.weight"
    ):
        convert_unilmv2(without_table)
    without_bias = dict(released)
    del without_bias["bert.encoder.layer.1.attention.self.v_bias"]
    with pytest.raises(ModelError, match=r"layer\.1\.attention\.self\.v_bias is absent"):
        convert_unilmv2(without_bias)
    with pytest.raises(ModelError, match="cannot be read"):
        save_unilmv2(tmp_path / "absent.bin", vocab, tmp_path / "out")
    torch.save(released, tmp_path / "unilm2.bin")
    vocab.write_text("\n".join(f"word{n}" for n in range(51)))
    with pytest.raises(ModelError, match=r"has 56 word pieces.*knows 50"):
        save_unilmv2(tmp_path / "unilm2.bin", vocab, tmp_path / "out")


def test_a_checkpoint_that_would_run_code_is_refused(vocab, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"bert.x": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        save_unilmv2(tmp_path / "evil.bin", vocab, tmp_path / "out")


@pytest.mark.parametrize("file", ["weights", "vocab"])
def test_pipes_and_edited_checkpoints_end_in_one_line(file, released, vocab, tmp_path, capsys):
    weights, out = tmp_path / "unilm2.bin", tmp_path / "out"
    torch.save(released | {5: "no tensor"}, weights)
    save_unilmv2(weights, vocab, tmp_path / "fine")
    changed = weights if file == "weights" else vocab
    words = ["convert", "unilmv2", "--weights", weights, "--vocab", vocab, "--out", out]
    changed.write_bytes(b"\x80\x02}q\x00.\xff")
    assert main([str(word) for word in words]) == 1
    changed.unlink()
    os.mkfifo(changed)
    assert main([str(word) for word in words]) == 1
    assert capsys.readouterr().err.count("tnr: error: ") == 2
    assert not out.exists()
