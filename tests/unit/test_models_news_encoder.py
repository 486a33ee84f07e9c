"""Pooling and news encoder: padding changes nothing, precision, gradients."""

import numpy as np
import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, texts, tiny_model

from trainer.errors import ModelError
from trainer.models.build import build_news_encoder
from trainer.models.pooling import AttentionPooling, MeanPooling, masked_softmax, weighted_sum

LENGTHS = [9, 3, 1, 6]


def encoder_of(**changes):
    torch.manual_seed(1)
    backbone = changes.pop("backbone", {})
    encoder = build_news_encoder(
        tiny_model(backbone, **changes), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
    )
    bias = encoder.backbone.rel_pos_bias
    if bias is not None:
        with torch.no_grad():
            bias.weight.normal_()
    return encoder.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pooling", ["attention", "mean", "cls"])
def test_a_vector_does_not_depend_on_the_padded_length(pooling, bias, attention):
    encoder = encoder_of(pooling=pooling, backbone={"relative_position_bias": bias})
    encoder.set_attn_implementation(attention)
    with torch.no_grad():
        short, long = (encoder(*texts(LENGTHS, padded_to=length)) for length in (9, 30))
        single = encoder(*(part[1:2, :3] for part in texts(LENGTHS, padded_to=9)))
    torch.testing.assert_close(short, long, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(single, short[1:2], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_text_without_tokens_has_a_finite_vector_of_no_length(bias, attention):
    encoder = encoder_of(backbone={"relative_position_bias": bias})
    encoder.set_attn_implementation(attention)
    with torch.no_grad():
        short, long = (encoder(*texts([4, 0], padded_to=length)) for length in (4, 12))
    assert torch.isfinite(short).all()
    torch.testing.assert_close(short, long, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_without_the_mask_padding_takes_part_as_in_the_released_code(pooling):
    encoder = encoder_of(pooling=pooling, pooling_mask=False)
    with torch.no_grad():
        short, long = (encoder(*texts(LENGTHS, padded_to=length)) for length in (9, 30))
        ids, mask = texts([5, 0], padded_to=8)
        all_padding = encoder(ids, mask)[1]
        as_tokens = encoder(ids[1:], torch.ones_like(mask[1:]))[0]
    assert (short - long).abs().max() > 1e-3
    torch.testing.assert_close(all_padding, as_tokens)


def test_attention_pooling_is_the_formula():
    torch.manual_seed(0)
    pooling = AttentionPooling(6, 5).double()
    vectors, mask = torch.randn(3, 4, 6).double(), torch.tensor([[1] * 4, [1, 0, 1, 0], [0] * 4])
    with torch.no_grad():
        found = pooling(vectors, mask).numpy()
    weights = {name: value.detach().numpy() for name, value in pooling.named_parameters()}
    for b in range(3):
        scores = {}
        for s in range(4):
            if mask[b, s]:
                hidden = np.tanh(
                    weights["key.weight"] @ vectors[b, s].numpy() + weights["key.bias"]
                )
                scores[s] = np.exp(weights["query.weight"][0] @ hidden + weights["query.bias"][0])
        total = sum(scores.values())
        expected = sum(
            (scores[s] / total * vectors[b, s].numpy() for s in scores), start=np.zeros(6)
        )
        np.testing.assert_allclose(found[b], expected, atol=1e-12)


def test_mean_pooling_is_the_mean_of_what_counts():
    vectors = torch.arange(12.0).view(1, 4, 3)
    found = MeanPooling()(vectors, torch.tensor([[0, 1, 0, 1]]))
    torch.testing.assert_close(found, (vectors[:, 1] + vectors[:, 3]) / 2)
    torch.testing.assert_close(MeanPooling()(vectors), vectors.mean(dim=1))


def test_softmax_neither_overflows_nor_divides_by_nothing():
    scores = torch.tensor([[1000.0, 999.0, -1000.0], [1.0, 2.0, 3.0]])
    weights = masked_softmax(scores, torch.tensor([[1, 1, 1], [0, 0, 0]]))
    assert weights[0].sum().item() == pytest.approx(1.0)
    assert weights[1].tolist() == [0.0, 0.0, 0.0]
    half = masked_softmax(scores.bfloat16(), None)
    assert half.dtype == torch.float32
    assert half.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_pooling_is_computed_in_fp32_whatever_the_vectors_and_autocast(dtype, autocast):
    weights = torch.tensor([[1.0, 2.0**-12]])
    vectors = torch.tensor([[[1.0], [1.0]]], dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = weighted_sum(weights, vectors)
    assert (found.item(), found.dtype) == (1.0 + 2.0**-12, torch.float32)


def test_autocast_gives_near_fp32_vectors():
    encoder = encoder_of()
    ids, mask = texts(LENGTHS, padded_to=9)
    with torch.no_grad():
        exact = encoder(ids, mask)
        with torch.autocast("cpu", torch.bfloat16):
            near = encoder(ids, mask)
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert torch.nn.functional.cosine_similarity(exact, near).min() > 0.99


@pytest.mark.parametrize("pooling", ["attention", "mean", "cls"])
def test_every_parameter_that_is_trained_gets_a_gradient(pooling):
    encoder = encoder_of(pooling=pooling, backbone={"relative_position_bias": True}).train()
    encoder(*texts(LENGTHS, padded_to=9)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_scaled_dot_product_attention_is_the_default():
    encoder = encoder_of()
    assert encoder.backbone.language_model.config._attn_implementation == "sdpa"


def test_a_text_longer_than_the_backbone_reads_is_an_error_with_both_numbers():
    encoder = encoder_of()
    with pytest.raises(ModelError, match="65 tokens is longer than the 64"):
        encoder(*texts([65], padded_to=65))
