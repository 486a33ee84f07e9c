"""User encoders: empty slots, empty histories, the released code's way, NRMS, the last clicks."""

import numpy as np
import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, texts, tiny_model

from trainer.errors import ModelError
from trainer.models.build import build_recommender
from trainer.models.configuration import RecommenderConfig
from trainer.models.loading import load_model

KINDS = ["additive", "nrms", "last_k_mean"]


def recommender_of(kind="additive", padding="mask", **changes):
    torch.manual_seed(2)
    config = tiny_model(user_encoder=kind, history_padding=padding, **changes)
    return build_recommender(config, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)


def history(clicks: list[int], slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories padded on the left, with rubbish in the empty slots."""
    vectors = torch.full((len(clicks), slots, 16), 1e4)
    mask = torch.zeros(len(clicks), slots, dtype=torch.bool)
    for row, number in enumerate(clicks):
        if number:
            generator = torch.Generator().manual_seed(number)
            vectors[row, -number:] = torch.randn(number, 16, generator=generator)
            mask[row, -number:] = True
    return vectors, mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", ["mask", "learned"])
def test_a_user_vector_does_not_depend_on_the_padded_length(kind, padding):
    model = recommender_of(kind, padding).eval()
    with torch.no_grad():
        short = model.encode_users(*history([5, 2, 1, 0], slots=5))
        long = model.encode_users(*history([5, 2, 1, 0], slots=50))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_training_and_use_are_the_same(kind):
    model = recommender_of(kind)
    with torch.no_grad():
        trained = model.train().encode_users(*history([3, 0], slots=4))
        used = model.eval().encode_users(*history([3, 0], slots=4))
    torch.testing.assert_close(trained, used)


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_without_history_is_the_learned_vector(kind):
    model = recommender_of(kind)
    expected = model.user_encoder.pad_doc
    if kind == "nrms":  # attention to one slot alone is its value
        expected = model.user_encoder.self_attention.value(expected)
    with torch.no_grad():
        users = model.encode_users(*history([0, 3], slots=4))
        none_at_all = model.encode_users(*history([0, 0], slots=0))
    torch.testing.assert_close(users[0], expected)
    assert (users[1] - expected).abs().max() > 0.1
    torch.testing.assert_close(none_at_all, users[:1].expand(2, -1))
    if kind != "nrms":  # one click on it, not one in each slot: to the bit, however many there are
        with torch.no_grad():
            cold = [model.encode_users(*history([0], slots=slots))[0] for slots in (1, 7, 50)]
        assert all(torch.equal(user, expected) for user in cold)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", ["mask", "learned"])
def test_every_parameter_gets_a_gradient_even_without_an_empty_slot(kind, padding):
    model = recommender_of(kind, padding).train()
    model.encode_users(*history([4, 4], slots=4)).square().sum().backward()
    named = model.user_encoder.named_parameters()
    assert [name for name, p in named if p.grad is None] == []


def test_learned_padding_takes_part_while_training_and_not_in_use():
    model = recommender_of(padding="learned")
    vectors, mask = history([2, 0], slots=6)
    with torch.no_grad():
        trained = model.train().encode_users(vectors, mask)
        used = model.eval().encode_users(vectors, mask)
        asked = model.encode_users(vectors, mask, mask_history=False)
        filled = torch.where(mask[..., None], vectors, model.user_encoder.pad_doc)
        expected = model.user_encoder.pooling(filled)
    torch.testing.assert_close(trained, expected)
    torch.testing.assert_close(asked, expected)
    assert (used[0] - trained[0]).abs().max() > 1e-2
    assert used[1].tolist() == [0.0] * 16
    torch.testing.assert_close(trained[1], model.user_encoder.pad_doc)


def test_the_mask_can_be_asked_for_while_training():
    model = recommender_of(padding="learned")
    vectors, mask = history([2, 0], slots=6)
    with torch.no_grad():
        asked = model.train().encode_users(vectors, mask, mask_history=True)
        used = model.eval().encode_users(vectors, mask)
    torch.testing.assert_close(asked, used)


def test_nrms_attends_with_every_head_to_its_own_part():
    model = recommender_of("nrms")
    layer = model.user_encoder.self_attention
    vectors, mask = history([4], slots=4)
    with torch.no_grad():
        found = layer(vectors, mask)[0]
        query, key, value = (part(vectors[0]) for part in (layer.query, layer.key, layer.value))
        for head in range(4):
            part = slice(head * 4, head * 4 + 4)
            weights = torch.softmax(query[:, part] @ key[:, part].T / 2.0, dim=-1)
            torch.testing.assert_close(found[:, part], weights @ value[:, part])


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_mean_of_the_last_clicks_is_numpys(k):
    model = recommender_of("last_k_mean", user_last_k=k).eval()
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(40, 12, 16)).astype(np.float32)
    filled = generator.random((40, 12)) < 0.4  # wherever they lie
    filled[:2] = False
    with torch.no_grad():
        users = model.encode_users(torch.from_numpy(vectors), torch.from_numpy(filled))
    for row in range(40):
        clicked = vectors[row][filled[row]]
        cold = model.user_encoder.pad_doc.detach().numpy()
        expected = clicked[-k:].mean(axis=0) if len(clicked) else cold
        np.testing.assert_allclose(users[row].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_learned_padding_fills_up_the_last_clicks_while_training():
    model = recommender_of("last_k_mean", "learned", user_last_k=4).train()
    vectors, mask = history([2, 6, 0], slots=6)
    with torch.no_grad():
        users = model.encode_users(vectors, mask)
    pad_doc = model.user_encoder.pad_doc.detach()
    torch.testing.assert_close(users[0], (2 * pad_doc + vectors[0, -2:].sum(0)) / 4)
    torch.testing.assert_close(users[1], vectors[1, -4:].mean(0))
    torch.testing.assert_close(users[2], pad_doc)


def test_the_mean_has_no_parameters_and_survives_a_round_trip(tmp_path):
    model = recommender_of("last_k_mean", user_last_k=3).eval()
    assert [name for name, _ in model.user_encoder.named_parameters()] == ["pad_doc"]
    model.save_pretrained(tmp_path / "export")
    loaded = load_model(tmp_path / "export").eval()
    assert loaded.config.user_last_k == 3
    with torch.no_grad():
        found, expected = (m.encode_users(*history([5, 2, 0], slots=6)) for m in (loaded, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    again = tiny_model(init=str(tmp_path / "export"), user_encoder="last_k_mean", user_last_k=2)
    started = build_recommender(again, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)
    torch.testing.assert_close(started.user_encoder.pad_doc, model.user_encoder.pad_doc)
    with pytest.raises(ModelError, match="user_encoder is 'additive'"):
        other = tiny_model(init=str(tmp_path / "export"))
        build_recommender(other, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)


def test_nrms_needs_heads_that_divide_the_width():
    with pytest.raises(ModelError, match=r"news_dim 16 is not a multiple of model\.user_heads 3"):
        config = tiny_model(user_encoder="nrms", user_heads=3)
        build_recommender(config, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)


@pytest.mark.parametrize(
    "field",
    [
        {"user_encoder": "gru"},
        {"history_padding": "none"},
        {"query_dim": 0},
        {"user_encoder": "last_k_mean", "user_last_k": 0},
        {"user_encoder": "last_k_mean", "user_last_k": "ten"},
    ],
)
def test_unknown_settings_are_refused(field):
    with pytest.raises(ModelError, match=next(iter(field))):
        RecommenderConfig(**field)


def test_scores_are_dot_products_of_candidates_with_their_own_user():
    model = recommender_of().eval()
    candidates, users = torch.randn(2, 3, 16), torch.randn(2, 16)
    scores = model.score(candidates, users)
    for b in range(2):
        for c in range(3):
            assert scores[b, c].item() == pytest.approx(
                sum(
                    x * y for x, y in zip(candidates[b, c].tolist(), users[b].tolist(), strict=True)
                ),
                rel=1e-4,
                abs=1e-5,
            )


def test_forward_is_encoding_then_scoring():
    model = recommender_of().eval()
    ids, mask = texts([5, 3, 7, 2], padded_to=7)
    history_index = torch.tensor([[0, 1], [3, 3]])
    filled = torch.tensor([[True, True], [False, True]])
    candidates = torch.tensor([[2, 3, 0], [1, 2, 0]])
    with torch.no_grad():
        scores = model(ids, mask, history_index, filled, candidates)
        news = model.encode_news(ids, mask)
        users = model.encode_users(news[history_index], filled)
    assert scores.shape == (2, 3)
    assert scores[0, 1].item() == pytest.approx((news[3] @ users[0]).item(), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(users[1], news[3])
