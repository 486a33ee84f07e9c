"""Every loss against a slow transcription of its formula in plain Python, values and gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainer.losses.contrastive import contrastive, in_batch_scores, in_batch_targets
from trainer.losses.distillation import distillation
from trainer.losses.embedding import embedding_distance, vector_errors, weighted_distance
from trainer.losses.teacher_weights import soft_label, teacher_weights

M, B, C, V, E = 3, 4, 5, 6, 7


def random(*shape: int, scale: float = 2.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(scale=scale, size=shape)


def leaf(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def log_softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    log_sum = top + math.log(sum(math.exp(score - top) for score in scores))
    return [score - log_sum for score in scores]


def slow_contrastive(scores, target) -> float:
    return -sum(log_softmax(list(scores[b]))[target[b]] for b in range(len(scores))) / len(scores)


def slow_weights(teacher_scores, target) -> np.ndarray:
    teachers, batch = teacher_scores.shape[:2]
    weights = np.zeros((teachers, batch))
    for b in range(batch):
        entropies = [-log_softmax(list(teacher_scores[m, b]))[target[b]] for m in range(teachers)]
        total = sum(math.exp(-entropy) for entropy in entropies)
        for m in range(teachers):
            weights[m, b] = math.exp(-entropies[m]) / total
    return weights


def slow_soft_label(teacher_scores, weights) -> np.ndarray:
    teachers, batch, candidates = teacher_scores.shape
    soft = np.zeros((batch, candidates))
    for b in range(batch):
        for c in range(candidates):
            soft[b, c] = sum(weights[m, b] * teacher_scores[m, b, c] for m in range(teachers))
    return soft


def slow_distillation(student, soft, temperature, squared) -> float:
    total = 0.0
    for b in range(len(student)):
        log_q = log_softmax([score / temperature for score in student[b]])
        log_p = log_softmax([score / temperature for score in soft[b]])
        total -= sum(math.exp(p) * q for p, q in zip(log_p, log_q, strict=True))
    return total / len(student) * (temperature**2 if squared else 1.0)


def slow_embedding(student, projected, weights, mask) -> float:
    batch, vectors, width = student.shape
    total = 0.0
    for b in range(batch):
        for m, teacher in enumerate(projected):
            counted = [v for v in range(vectors) if mask[b, v]]
            errors = [
                sum((teacher[b, v, e] - student[b, v, e]) ** 2 for e in range(width)) / width
                for v in counted
            ]
            total += weights[m, b] * sum(errors) / len(errors)
    return total / batch


def numeric_gradient(function, array: np.ndarray, step: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(array)
    for place in np.ndindex(*array.shape):
        up, down = array.copy(), array.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("target", [None, [4, 0, 2, 3]])
def test_contrastive_is_the_cross_entropy_of_the_formula(target):
    scores = random(B, C)
    places = [0] * B if target is None else target
    tensor = leaf(scores)
    loss = contrastive(tensor, None if target is None else torch.tensor(target))
    loss.backward()
    assert loss.item() == pytest.approx(slow_contrastive(scores, places), rel=1e-12)
    expected = numeric_gradient(lambda changed: slow_contrastive(changed, places), scores)
    np.testing.assert_allclose(tensor.grad, expected, atol=1e-8)


def test_contrastive_survives_scores_whose_exponential_overflows():
    assert contrastive(torch.tensor([[900.0, -900.0, 0.0]])).item() == 0.0
    assert contrastive(torch.tensor([[-900.0, 900.0, 0.0]])).item() == 1800.0


def test_in_batch_scores_put_the_own_title_at_its_rank_offset():
    bodies, titles = random(2, E), random(6, E, seed=1)
    scores = in_batch_scores(torch.tensor(bodies), torch.tensor(titles))
    for b in range(2):
        for n in range(6):
            expected = sum(bodies[b, e] * titles[n, e] for e in range(E))
            assert scores[b, n].item() == pytest.approx(expected, rel=1e-12)
    assert in_batch_targets(2, offset=4).tolist() == [4, 5]
    # A second rank's bodies that equal their own titles are found there.
    same = torch.eye(6, dtype=torch.float64)
    assert in_batch_scores(same[4:], same).argmax(dim=1).tolist() == [4, 5]


@pytest.mark.parametrize("target", [None, [4, 0, 2, 3]])
def test_teacher_weights_are_those_of_the_formula(target):
    scores = random(M, B, C)
    places = [0] * B if target is None else target
    found = teacher_weights(torch.tensor(scores), None if target is None else torch.tensor(target))
    np.testing.assert_allclose(found, slow_weights(scores, places), rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(arrays(np.float64, (M, B, C), elements=st.floats(-80, 80)))
def test_teacher_weights_sum_to_one_and_prefer_the_teacher_that_is_right(scores):
    weights = teacher_weights(torch.tensor(scores))
    np.testing.assert_allclose(weights.sum(dim=0), np.ones(B), rtol=1e-12)
    entropy = np.array([[-log_softmax(list(row))[0] for row in teacher] for teacher in scores])
    for b in range(B):
        best, worst = entropy[:, b].argmin(), entropy[:, b].argmax()
        assert weights[best, b] >= weights[worst, b] - 1e-12


def test_a_single_teacher_has_weight_one():
    assert torch.equal(teacher_weights(torch.tensor(random(1, B, C))), torch.ones(1, B).double())


def test_soft_label_mixes_scores_by_weight():
    scores, weights = random(M, B, C), np.abs(random(M, B))
    found = soft_label(torch.tensor(scores), torch.tensor(weights))
    np.testing.assert_allclose(found, slow_soft_label(scores, weights), rtol=1e-12)


def test_no_gradient_reaches_the_teachers():
    teachers, student = leaf(random(M, B, C)), leaf(random(B, C, seed=1))
    weights = teacher_weights(teachers)
    soft = soft_label(teachers, weights)
    assert not weights.requires_grad and not soft.requires_grad
    distillation(student, soft).backward()
    assert teachers.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_the_formula(temperature, squared):
    student, soft = random(B, C), random(B, C, seed=1)
    tensor = leaf(student)
    loss = distillation(tensor, torch.tensor(soft), temperature, squared)
    loss.backward()
    expected = slow_distillation(student, soft, temperature, squared)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    gradient = numeric_gradient(
        lambda changed: slow_distillation(changed, soft, temperature, squared), student
    )
    np.testing.assert_allclose(tensor.grad, gradient, atol=1e-7)


def test_distillation_is_least_where_the_student_has_the_teachers_scores():
    soft = torch.tensor(random(B, C))
    student = (soft + 3.0).clone().requires_grad_(True)
    distillation(student, soft, temperature=2.0).backward()
    np.testing.assert_allclose(student.grad, np.zeros((B, C)), atol=1e-12)


def test_distillation_softens_the_teacher_by_the_same_temperature():
    # At a high temperature a certain teacher becomes unsure: a student as certain, softened alike,
    # follows it, and one who knows nothing pays the entropy of a coin.
    soft = torch.tensor([[50.0, 0.0]])
    sure, unsure = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert distillation(sure, soft, 100.0, False) < distillation(unsure, soft, 100.0, False)
    entropy = -(0.5 * math.log(0.5) * 2)
    assert distillation(unsure, soft, 1e6, False).item() == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_embedding_distance_is_the_formula(masked):
    student = random(B, V, E)
    projected = [random(B, V, E, seed=m + 1) for m in range(M)]
    weights = slow_weights(random(M, B, C), [0] * B)
    mask = np.ones((B, V), dtype=bool)
    if masked:
        mask = np.random.default_rng(5).random((B, V)) < 0.5
        mask[:, -1] = True
    tensor, teachers = leaf(student), [leaf(array) for array in projected]
    loss = embedding_distance(
        tensor, teachers, torch.tensor(weights), torch.tensor(mask) if masked else None
    )
    loss.backward()
    expected = slow_embedding(student, projected, weights, mask)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    gradient = numeric_gradient(
        lambda changed: slow_embedding(changed, projected, weights, mask), student
    )
    np.testing.assert_allclose(tensor.grad, gradient, atol=1e-7)
    # The teachers' side has a gradient too: it trains the projections.
    for m, teacher in enumerate(teachers):
        gradient = numeric_gradient(
            lambda changed, m=m: slow_embedding(
                student, [*projected[:m], changed, *projected[m + 1 :]], weights, mask
            ),
            projected[m],
        )
        np.testing.assert_allclose(teacher.grad, gradient, atol=1e-7)


def test_the_embedding_loss_cannot_lower_itself_through_the_weights():
    weights = leaf(np.full((1, B), 0.5))
    student = leaf(random(B, V, E))
    embedding_distance(student, [torch.tensor(random(B, V, E, seed=1))], weights).backward()
    assert student.grad is not None
    assert weights.grad is None


def test_embedding_distance_passes_gradcheck():
    weights = torch.tensor(slow_weights(random(M, B, C), [0] * B))
    mask = torch.tensor(np.random.default_rng(5).random((B, 3)) < 0.7)
    teachers = [leaf(random(B, 3, 2, seed=m)) for m in range(M)]
    torch.autograd.gradcheck(
        lambda student, *projected: embedding_distance(student, projected, weights, mask),
        (leaf(random(B, 3, 2, seed=9)), *teachers),
    )


def test_what_is_in_masked_slots_never_matters():
    student = random(B, V, E)
    mask = torch.ones(B, V, dtype=torch.bool)
    mask[:, :2] = False
    weights = torch.full((1, B), 1.0, dtype=torch.float64)
    projected = [torch.tensor(random(B, V, E, seed=1))]
    clean = leaf(student)
    spoiled_array = student.copy()
    spoiled_array[:, :2] = np.nan
    spoiled = leaf(spoiled_array)
    first = embedding_distance(clean, projected, weights, mask)
    second = embedding_distance(spoiled, projected, weights, mask)
    assert first.item() == second.item()
    assert embedding_distance(clean, projected, weights).item() != first.item()


def test_a_sample_without_any_counted_vector_adds_nothing():
    student, projected = torch.tensor(random(2, V, E)), [torch.tensor(random(2, V, E, seed=1))]
    weights = torch.ones(1, 2, dtype=torch.float64)
    mask = torch.ones(2, V, dtype=torch.bool)
    mask[1] = False
    alone = embedding_distance(student[:1], [projected[0][:1]], weights[:, :1])
    assert embedding_distance(student, projected, weights, mask).item() == pytest.approx(
        alone.item() / 2, rel=1e-12
    )


def test_errors_taken_once_a_text_and_gathered_give_the_same_distance():
    texts, teacher = leaf(random(9, E)), torch.tensor(random(9, E, seed=1))
    index = torch.tensor(np.random.default_rng(3).integers(0, 9, (B, V)))
    weights = torch.tensor(np.abs(random(1, B)))
    whole = embedding_distance(texts[index], [teacher[index]], weights)
    gathered = weighted_distance(vector_errors(texts, teacher)[index].unsqueeze(0), weights)
    assert whole.item() == pytest.approx(gathered.item(), rel=1e-12)
    first = torch.autograd.grad(whole, texts)[0]
    second = torch.autograd.grad(gathered, texts)[0]
    np.testing.assert_allclose(first, second, rtol=1e-12)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_without_autocast_is_computed_in_fp32_too(kind):
    student, soft = (torch.tensor(random(B, C, seed=n)).to(kind) for n in range(2))
    vectors = [torch.tensor(random(B, V, E, seed=n)).to(kind) for n in range(2)]
    weights = torch.ones(1, B)
    pairs = [
        (contrastive(student), contrastive(student.float())),
        (distillation(student, soft, 2.0), distillation(student.float(), soft.float(), 2.0)),
        (
            embedding_distance(vectors[0], vectors[1:], weights),
            embedding_distance(vectors[0].float(), [vectors[1].float()], weights),
        ),
        (in_batch_scores(student, soft), in_batch_scores(student.float(), soft.float())),
    ]
    for found, exact in pairs:
        assert found.dtype == torch.float32
        assert torch.equal(found, exact)


def test_no_gradient_reaches_a_soft_label_that_has_one():
    soft, student = leaf(random(B, C)), leaf(random(B, C, seed=1))
    distillation(student, soft).backward()
    assert soft.grad is None


def test_bf16_inputs_are_computed_in_fp32():
    scores = torch.tensor(random(M, B, C, scale=10.0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        weights = teacher_weights(scores)
        losses = [
            contrastive(scores[0]),
            distillation(scores[0], soft_label(scores, weights), 2.0),
            embedding_distance(scores[0, :, :, None], [scores[1, :, :, None]], weights[:1]),
            in_batch_scores(scores[0], scores[1]).sum(),
        ]
    exact = teacher_weights(scores.float())
    assert torch.equal(weights, exact)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert losses[0].item() == contrastive(scores[0].float()).item()
    assert losses[3].item() == in_batch_scores(scores[0].float(), scores[1].float()).sum().item()
