"""States and attention scores from inside a backbone, against transformers' own and a formula."""

import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from trainer.errors import ModelError
from trainer.models.configuration import NewsEncoderConfig
from trainer.models.execution import checkpoint_activations, compile_layers
from trainer.models.news_encoder import NewsEncoder

LAYERS, HEADS, WIDTH = 3, 2, 16
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
FAMILIES: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "roberta": lambda: transformers.RobertaConfig(**SIZES),
    "electra": lambda: transformers.ElectraConfig(embedding_size=8, **SIZES),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=60, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=24, pad_token_id=1
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        global_attn_every_n_layers=2,
        local_attention=4,
        **{f"{name}_token_id": 2 for name in ("bos", "eos", "cls", "sep")},
        **SIZES,
    ),
    "mpnet": lambda: transformers.MPNetConfig(**SIZES),
    "deberta-v2": lambda: transformers.DebertaV2Config(**RELATIVE, **SIZES),
}
FUSED = ("bert", "roberta", "electra", "distilbert", "modernbert")
"""Families that leave the softmax to torch's fused attention."""


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Four texts of up to 9 tokens."""
    mask_UL = torch.arange(9) < torch.tensor([9, 4, 7, 2])[:, None]
    ids_UL = torch.randint(5, 60, mask_UL.shape, generator=torch.Generator().manual_seed(1))
    return ids_UL.masked_fill(~mask_UL, 1), mask_UL


def encoder_of(family: str, *, bias: bool = False) -> NewsEncoder:
    torch.manual_seed(0)
    config = NewsEncoderConfig(
        backbone=FAMILIES[family](), news_dim=6, query_dim=5, relative_position_bias=bias
    )
    encoder = NewsEncoder(config).eval()
    for parameter in encoder.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_states_and_scores_are_those_that_transformers_gives(family: str) -> None:
    encoder = encoder_of(family)
    ids_UL, mask_UL = texts()
    out = encoder.encode(ids_UL, mask_UL, states_of=(2, 0), scores_of=(1, 2))
    torch.testing.assert_close(out.vectors, encoder(ids_UL, mask_UL), rtol=0, atol=0)
    model = encoder.backbone.language_model
    if family in FUSED:
        assert model.config._attn_implementation == "sdpa"
        model.set_attn_implementation("eager")
    reference = model(
        input_ids=ids_UL,
        attention_mask=mask_UL.long(),
        output_hidden_states=True,
        output_attentions=True,
    )
    for number, states_ULD in zip((2, 0), out.states, strict=True):
        wanted_ULD = reference.hidden_states[number + 1]
        torch.testing.assert_close(states_ULD[mask_UL], wanted_ULD[mask_UL], rtol=1e-5, atol=1e-6)
    for number, scores_UALL in zip((1, 2), out.scores, strict=True):
        assert scores_UALL.shape == (4, HEADS, 9, 9)
        said = scores_UALL.softmax(dim=-1).transpose(1, 2)[mask_UL]
        wanted = reference.attentions[number].transpose(1, 2)[mask_UL]
        torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_scores_are_queries_times_keys_and_the_bias(implementation: str) -> None:
    """Written out: (W_q h)(W_k h) / sqrt(d), and UniLMv2's bias between the tokens."""
    encoder = encoder_of("bert", bias=True)
    encoder.backbone.language_model.set_attn_implementation(implementation)
    ids_UL, mask_UL = texts()
    out = encoder.encode(ids_UL, mask_UL, states_of=(0,), scores_of=(1,))
    attention = encoder.backbone.language_model.encoder.layer[1].attention.self
    d = WIDTH // HEADS
    query, key = (
        part(out.states[0]).view(4, 9, HEADS, d) for part in (attention.query, attention.key)
    )
    expected = torch.einsum("uqad,ukad->uaqk", query, key) / math.sqrt(d)
    expected = expected + encoder.backbone.rel_pos_bias(9)
    seen = mask_UL[:, None, None, :].expand_as(expected)
    torch.testing.assert_close(out.scores[0][seen], expected[seen], rtol=1e-5, atol=1e-5)
    assert (out.scores[0][~seen] < -1e30).all()


def test_a_loss_over_scores_and_states_trains_the_layers_below() -> None:
    encoder = encoder_of("bert")
    out = encoder.encode(*texts(), states_of=(1,), scores_of=(1,))
    (out.states[0].pow(2).mean() + out.scores[0][0].pow(2).mean()).backward()
    layers = encoder.backbone.language_model.encoder.layer
    assert layers[1].attention.self.query.weight.grad.abs().sum() > 0
    assert layers[0].output.dense.weight.grad.abs().sum() > 0
    assert layers[2].output.dense.weight.grad is None


def test_nothing_is_left_behind() -> None:
    encoder = encoder_of("bert")
    encoder.encode(*texts(), scores_of=(1,))  # for states, transformers leaves hooks of its own
    for module in encoder.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("number", [-1, LAYERS])
def test_a_layer_that_is_not_there_is_refused(number: int) -> None:
    with pytest.raises(
        ModelError, match=f"layer {number} does not exist in a backbone of 3 layers"
    ):
        encoder_of("bert").encode(*texts(), states_of=(number,))


def test_layers_without_attention_give_states_and_no_scores() -> None:
    config = transformers.DebertaV2Config(**SIZES)
    encoder = NewsEncoder(NewsEncoderConfig(backbone=config, news_dim=6)).eval()

    class Mean(nn.Module):
        def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return hidden_states.mean(dim=1, keepdim=True).expand_as(hidden_states), None

    encoder.backbone.language_model.encoder.layer[1].attention = Mean()
    (states_ULD,) = encoder.encode(*texts(), states_of=(1,)).states
    assert states_ULD.shape == (4, 9, WIDTH)
    with pytest.raises(
        ModelError, match=r"scores are not available from .*'deberta-v2': a layer computes 0"
    ):
        encoder.encode(*texts(), scores_of=(1,))


def test_scores_and_recomputed_activations_exclude_each_other() -> None:
    encoder = encoder_of("bert")
    checkpoint_activations(encoder)
    assert encoder.encode(*texts(), states_of=(1,)).states[0].shape == (4, 9, WIDTH)
    with pytest.raises(ModelError, match=r"set it to false"):
        encoder.encode(*texts(), scores_of=(1,))


@pytest.mark.slow
@torch.no_grad()
def test_compiled_layers_give_the_same_scores() -> None:
    expected = encoder_of("bert").encode(*texts(), scores_of=(1,))
    encoder = encoder_of("bert")
    compile_layers(encoder)
    out = encoder.encode(*texts(), scores_of=(1,))
    torch.testing.assert_close(out.scores[0], expected.scores[0], rtol=1e-4, atol=1e-4)
