"""UniLMv2's bias against attention written out by hand, bucket by bucket and score by score."""

import math

import numpy as np
import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, texts, tiny_model

from trainer.errors import ModelError
from trainer.models.build import build_news_encoder
from trainer.models.relative_position import RelativePositionBias, relative_position_bucket


def slow_bucket(relative: int) -> int:
    """16 buckets a sign: exact below 8, log-spaced to 128, clipped; +16 for keys after."""
    distance = abs(relative)
    if distance < 8:
        bucket = distance
    else:
        # 8 * log(distance / 8) / log(16), by comparing integer powers so that nothing is rounded.
        bucket = 8
        while bucket < 15 and distance**8 >= 8**8 * 16 ** (bucket - 7):
            bucket += 1
    return bucket + (16 if relative > 0 else 0)


def test_buckets_are_t5s():
    relative = torch.arange(-300, 301)
    expected = [slow_bucket(int(value)) for value in relative]
    assert relative_position_bucket(relative).tolist() == expected
    assert slow_bucket(0) == 0 and slow_bucket(7) == 23 and slow_bucket(-8) == 8
    assert slow_bucket(-127) == slow_bucket(-5000) == 15 and slow_bucket(200) == 31


def test_a_length_first_met_in_inference_mode_can_be_trained_on():
    """As with live teachers: what is kept for a length serves every model of the process."""
    bias = RelativePositionBias(2)
    length = 97  # of no other test
    with torch.inference_mode():
        bias(length)
    bias(length).sum().backward()
    assert bias.weight.grad.sum() == 2 * length**2


def test_buckets_are_those_of_mpnet():
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    relative = torch.arange(40)[None, :] - torch.arange(40)[:, None]
    theirs = MPNetEncoder.relative_position_bucket(relative, num_buckets=32, max_distance=128)
    assert torch.equal(relative_position_bucket(relative), theirs)


@pytest.mark.parametrize("length", [1, 2, 9, 140])
def test_the_bias_matrix_holds_the_bucket_of_key_minus_query(length):
    bias = RelativePositionBias(num_heads=3)
    with torch.no_grad():
        bias.weight.normal_()
    found = bias(length)
    assert found.shape == (3, length, length)
    for query in range(0, length, 7):
        for key in range(length):
            assert torch.equal(found[:, query, key], bias.weight[slow_bucket(key - query)])


def test_the_bias_matrix_passes_its_gradient_to_the_table():
    bias = RelativePositionBias(num_heads=2)
    bias(5)[1].sum().backward()
    counts = [0] * 32
    for query in range(5):
        for key in range(5):
            counts[slow_bucket(key - query)] += 1
    assert bias.weight.grad[:, 1].tolist() == counts
    assert bias.weight.grad[:, 0].tolist() == [0] * 32


def layer_norm(states: np.ndarray, weights: dict, name: str) -> np.ndarray:
    centred = states - states.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(states: np.ndarray, weights: dict, name: str) -> np.ndarray:
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def slow_language_model(ids: np.ndarray, table: np.ndarray, weights: dict, num_heads: int):
    """Post-LN BERT with the bias, for one text without padding."""
    length = len(ids)
    states = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][:length]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    states = layer_norm(states, weights, "embeddings.LayerNorm")
    width = states.shape[1] // num_heads
    erf = np.vectorize(math.erf)
    for number in range(4):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            linear(states, weights, f"{layer}.attention.self.{part}")
            for part in ("query", "key", "value")
        )
        attended = np.zeros_like(states)
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(length):
                scores = np.array(
                    [
                        query[i, part] @ key[j, part] / math.sqrt(width)
                        + table[slow_bucket(j - i), head]
                        for j in range(length)
                    ]
                )
                shares = np.exp(scores - scores.max())
                attended[i, part] = shares / shares.sum() @ value[:, part]
        attended = linear(attended, weights, f"{layer}.attention.output.dense")
        states = layer_norm(states + attended, weights, f"{layer}.attention.output.LayerNorm")
        inner = linear(states, weights, f"{layer}.intermediate.dense")
        inner = 0.5 * inner * (1 + erf(inner / math.sqrt(2)))
        inner = linear(inner, weights, f"{layer}.output.dense")
        states = layer_norm(states + inner, weights, f"{layer}.output.LayerNorm")
    return states


def biased_encoder():
    torch.manual_seed(3)
    config = tiny_model({"relative_position_bias": True})
    encoder = build_news_encoder(config, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)
    with torch.no_grad():
        for name, parameter in encoder.backbone.language_model.named_parameters():
            if "bias" in name or "weight" in name:
                # Larger than the initial values, so that attention is far from uniform.
                parameter.add_(0.3 * torch.randn_like(parameter))
        encoder.backbone.rel_pos_bias.weight.normal_(std=2.0)
    return encoder.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_language_model_with_bias_is_the_one_written_by_hand(attention):
    encoder = biased_encoder().double()
    encoder.set_attn_implementation(attention)
    backbone = encoder.backbone
    weights = {k: v.numpy() for k, v in backbone.language_model.state_dict().items()}
    table = backbone.rel_pos_bias.weight.detach().numpy()
    lengths = [12, 20, 3]
    ids, mask = texts(lengths, padded_to=20)
    with torch.no_grad():
        found = backbone(ids, mask.bool()).numpy()
        unpadded = backbone(ids[1:2], mask[1:2].bool()).numpy()
    for row, length in enumerate(lengths):
        expected = slow_language_model(ids[row, :length].numpy(), table, weights, num_heads=4)
        np.testing.assert_allclose(found[row, :length], expected, atol=1e-9)
    np.testing.assert_allclose(unpadded[0], found[1], atol=1e-9)
    without = slow_language_model(ids[0, :12].numpy(), 0 * table, weights, num_heads=4)
    assert np.abs(without - found[0, :12]).max() > 0.1


def test_one_bias_serves_the_whole_batch_where_nothing_is_padded():
    encoder = biased_encoder()
    _, mask = texts([6, 6, 6], padded_to=6)
    combined = encoder.backbone._bias_and_padding(encoder.backbone.rel_pos_bias(6), mask.bool())
    assert combined.shape == (3, 4, 6, 6)
    assert combined.stride(0) == 0


def test_autocast_with_bias_and_padding_stays_finite_and_near():
    encoder = biased_encoder()
    ids, mask = texts([12, 20, 0], padded_to=20)
    with torch.no_grad():
        exact = encoder(ids, mask)
        with torch.autocast("cpu", torch.bfloat16):
            near = encoder(ids, mask)
    assert near.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(exact, near)
    assert cosine.min() > 0.99


def test_the_bias_is_refused_for_backbones_that_cannot_take_it(tmp_path):
    from transformers import AutoModel, MPNetConfig

    config = MPNetConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    model = tiny_model({"name": str(tmp_path), "relative_position_bias": True})
    with pytest.raises(ModelError, match=r"relative_position_bias is not possible.*mpnet"):
        build_news_encoder(model, vocab_size=VOCAB_SIZE, pad_id=1)
