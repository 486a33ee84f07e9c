"""Conversion of released UniLMv2 weights, on a made-up checkpoint of their form."""

import pytest
import torch
from helpers.tiny_models import tiny_model

from trainer.errors import ModelError
from trainer.models import build_news_encoder
from trainer.models.unilmv2 import convert_unilmv2, save_unilmv2

WIDTH, HEADS, INNER, LAYERS = 16, 4, 24, 2


@pytest.fixture
def released() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {
        "bert.embeddings.word_embeddings.weight": (50, WIDTH),
        "bert.embeddings.position_embeddings.weight": (20, WIDTH),
        "bert.embeddings.token_type_embeddings.weight": (2, WIDTH),
        "bert.embeddings.LayerNorm.gamma": (WIDTH,),
        "bert.embeddings.LayerNorm.beta": (WIDTH,),
        "bert.encoder.rel_pos_bias.weight": (HEADS, 32),
        "bert.pooler.dense.weight": (WIDTH, WIDTH),
        "bert.pooler.dense.bias": (WIDTH,),
        "cls.predictions.bias": (50,),
    }
    for number in range(LAYERS):
        layer = f"bert.encoder.layer.{number}"
        shapes |= {
            f"{layer}.attention.self.qkv_linear.weight": (3 * WIDTH, WIDTH),
            f"{layer}.attention.self.q_bias": (1, 1, WIDTH),
            f"{layer}.attention.self.v_bias": (1, 1, WIDTH),
            f"{layer}.attention.output.dense.weight": (WIDTH, WIDTH),
            f"{layer}.attention.output.dense.bias": (WIDTH,),
            f"{layer}.attention.output.LayerNorm.weight": (WIDTH,),
            f"{layer}.attention.output.LayerNorm.bias": (WIDTH,),
            f"{layer}.intermediate.dense.weight": (INNER, WIDTH),
            f"{layer}.intermediate.dense.bias": (INNER,),
            f"{layer}.output.dense.weight": (WIDTH, INNER),
            f"{layer}.output.dense.bias": (WIDTH,),
            f"{layer}.output.LayerNorm.weight": (WIDTH,),
            f"{layer}.output.LayerNorm.bias": (WIDTH,),
        }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


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


def test_a_converted_folder_is_a_backbone(released, tmp_path):
    torch.save(released, tmp_path / "unilm2.bin")
    folder = save_unilmv2(tmp_path / "unilm2.bin", tmp_path / "unilmv2")
    model = tiny_model({"name": str(folder), "relative_position_bias": True, "layers": (0,)})
    encoder = build_news_encoder(model, vocab_size=50, pad_id=0)
    converted = convert_unilmv2(released)
    assert torch.equal(encoder.backbone.rel_pos_bias.weight, converted["rel_pos_bias.weight"])
    state = encoder.backbone.language_model.state_dict()
    assert all(torch.equal(value, converted[name]) for name, value in state.items())
    assert encoder.config.backbone.num_attention_heads == HEADS


def test_other_checkpoints_are_refused(released, tmp_path):
    without_table = dict(released)
    del without_table["bert.encoder.rel_pos_bias.weight"]
    with pytest.raises(ModelError, match=r"no UniLMv2 checkpoint: it has no rel_pos_bias\.weight"):
        convert_unilmv2(without_table)
    without_bias = dict(released)
    del without_bias["bert.encoder.layer.1.attention.self.v_bias"]
    with pytest.raises(ModelError, match=r"layer\.1\.attention\.self\.v_bias is absent"):
        convert_unilmv2(without_bias)
    with pytest.raises(ModelError, match="cannot be read"):
        save_unilmv2(tmp_path / "absent.bin", tmp_path / "out")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"bert.x": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        save_unilmv2(tmp_path / "evil.bin", tmp_path / "out")
