"""The whole loss of every task against a slow transcription of the paper's formulas, sample by
sample."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.config.distill import LossConfig
from trainer.tasks.base import accuracy
from trainer.tasks.finetune.clicks import Clicks, FinetuneDistillModule, FinetuneModule
from trainer.tasks.finetune.task import ClickLossConfig
from trainer.tasks.post_train.pairs import Pairs, PostTrainDistillModule, PostTrainModule
from trainer.tasks.texts import SubBatch, Texts
from trainer.teacher_server.signals import ClicksSaid, TextsSaid

E_NEWS, TEACHER_DIMS = 6, [5, 8]
T = 2.0


class TableEncoder(nn.Module):
    """A news encoder whose vectors are a table looked up by the first token."""

    def __init__(self, num_texts: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(news_dim=E_NEWS)
        self.table = nn.Parameter(torch.randn(num_texts, E_NEWS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.table[ids[:, 0]]


class TableRecommender(TableEncoder):
    """Its user vector is the mean of the clicked vectors."""

    def encode_news(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self(ids, mask)

    def encode_users(self, history_BHE: Tensor, mask_BH: Tensor) -> Tensor:
        weights = mask_BH.to(history_BHE.dtype)
        return torch.einsum("bhe,bh->be", history_BHE, weights / weights.sum(1, keepdim=True))

    def score(self, candidates_BCE: Tensor, user_BE: Tensor) -> Tensor:
        return torch.einsum("bce,be->bc", candidates_BCE, user_BE)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def cross_entropy(target: list[float], scores: list[float]) -> float:
    return -sum(t * math.log(p) for t, p in zip(target, softmax(scores), strict=True))


def one_hot_first(size: int) -> list[float]:
    return [1.0] + [0.0] * (size - 1)


def mse(a: np.ndarray, b: np.ndarray) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def teacher_mix(scores: list[list[float]]) -> tuple[list[float], list[float]]:
    """alpha (or beta) of one sample, and its mixed scores."""
    hard = one_hot_first(len(scores[0]))
    weights = softmax([-cross_entropy(hard, s) for s in scores])
    mixed = [sum(w * s[c] for w, s in zip(weights, scores, strict=True)) for c in range(len(hard))]
    return weights, mixed


@pytest.mark.parametrize("target", [0, 2])
def test_accuracy_counts_a_tie_for_the_best_in_part(target: int) -> None:
    """What a draw among the best would score on average, so a model that says the same of all
    candidates is no better than chance."""
    scores = torch.tensor(
        [[1.0] * 4, [3.0, 1.0, 3.0, 2.0], [0.0, 5.0, 0.0, 1.0], [7.0, 1.0, 7.5, 0.0]]
    )
    targets = torch.full((4,), target)
    expected = np.mean(
        [float(row[target] == row.max()) / (row == row.max()).sum() for row in scores.numpy()]
    )
    assert accuracy(scores, targets).item() == pytest.approx(expected)
    if target == 0:
        assert accuracy(scores).item() == pytest.approx(expected)
    assert accuracy(torch.full((2, 4), math.nan)).item() == 0.0


def project(projections: nn.Module, m: int, vector: np.ndarray) -> np.ndarray:
    vectors = [torch.zeros(1, dim) for dim in TEACHER_DIMS]
    vectors[m] = torch.tensor(vector, dtype=torch.float32)[None]
    with torch.no_grad():
        return projections(vectors)[m][0].numpy()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)
    np.random.seed(3)


def texts_of(ids: Tensor) -> Texts:
    return Texts((SubBatch(ids, torch.ones_like(ids)),))


def pairs_batch(num_samples: int = 3, num_titles: int = 7, candidates: int = 4) -> Pairs:
    titles = torch.arange(num_titles)[:, None]
    bodies = torch.arange(num_titles, num_titles + num_samples)[:, None]
    index = torch.stack([torch.randperm(num_titles)[:candidates] for _ in range(num_samples)])
    said = [(torch.randn(num_titles, dim), torch.randn(num_samples, dim)) for dim in TEACHER_DIMS]
    of_titles, of_bodies = zip(*said, strict=True)
    return Pairs(
        titles=texts_of(titles),
        bodies=texts_of(bodies),
        title_index=index,
        teachers=TextsSaid(titles=of_titles, bodies=of_bodies),
    )


def test_post_training_is_the_mean_cross_entropy_of_the_own_title() -> None:
    batch = pairs_batch()
    task = PostTrainModule(TableEncoder(10))
    table = task.model.table.detach().numpy()
    losses = []
    for sample, titles in enumerate(batch.title_index.tolist()):
        scores = [float(table[7 + sample] @ table[t]) for t in titles]
        losses.append(cross_entropy(one_hot_first(4), scores))
    assert task(batch)["loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_in_batch_negatives_are_the_other_samples_titles() -> None:
    batch = pairs_batch()
    batch = dataclasses.replace(batch, title_index=batch.title_index[:, :1])
    task = PostTrainModule(TableEncoder(10), in_batch_negatives=True)
    table = task.model.table.detach().numpy()
    own = batch.title_index[:, 0].tolist()
    losses = []
    for sample in range(3):
        others = [t for s, t in enumerate(own) if s != sample]
        scores = [float(table[7 + sample] @ table[t]) for t in [own[sample], *others]]
        losses.append(cross_entropy(one_hot_first(3), scores))
    assert task(batch)["loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_stage_one_is_target_plus_distill_plus_embedding(squared: bool) -> None:
    batch = pairs_batch()
    loss = LossConfig(
        target=0.5, distill=2.0, embedding=3.0, temperature=T, temperature_squared=squared
    )
    task = PostTrainDistillModule(TableEncoder(10), TEACHER_DIMS, loss)
    table = task.model.table.detach().numpy()
    target, distill, embedding = [], [], []
    for sample, titles in enumerate(batch.title_index.tolist()):
        body = table[7 + sample]
        scores = [float(body @ table[t]) for t in titles]
        said = []
        for m in range(2):
            t_body = batch.teachers.bodies[m][sample].double().numpy()
            t_titles = batch.teachers.titles[m].double().numpy()
            said.append([float(t_body @ t_titles[t]) for t in titles])
        weights, mixed = teacher_mix(said)
        soft = softmax([s / T for s in mixed])
        factor = T**2 if squared else 1.0
        target.append(cross_entropy(one_hot_first(4), scores))
        distill.append(factor * cross_entropy(soft, [s / T for s in scores]))
        distance = 0.0
        for m, weight in enumerate(weights):
            t_body = batch.teachers.bodies[m][sample].double().numpy()
            t_titles = batch.teachers.titles[m].double().numpy()
            of_titles = [mse(project(task.projections, m, t_titles[t]), table[t]) for t in titles]
            distance += weight * (
                np.mean(of_titles) + mse(project(task.projections, m, t_body), body)
            )
        embedding.append(distance)
    out = task(batch)
    assert out["losses"]["target"].item() == pytest.approx(np.mean(target), rel=1e-5)
    assert out["losses"]["distill"].item() == pytest.approx(np.mean(distill), rel=1e-5)
    assert out["losses"]["embedding"].item() == pytest.approx(np.mean(embedding), rel=1e-5)
    total = 0.5 * np.mean(target) + 2.0 * np.mean(distill) + 3.0 * np.mean(embedding)
    assert out["loss"].item() == pytest.approx(total, rel=1e-5)


def clicks_batch() -> Clicks:
    num_texts, candidates = 8, 3
    ids = torch.arange(num_texts)[:, None]
    said = [
        (torch.randn(num_texts, dim), torch.randn(2, dim), torch.randn(2, candidates))
        for dim in TEACHER_DIMS
    ]
    return Clicks(
        news=texts_of(ids),
        history_index=torch.tensor([[7, 0, 1, 2], [7, 7, 7, 3]]),
        history_mask=torch.tensor([[False, True, True, True], [False, False, False, True]]),
        candidate_index=torch.tensor([[4, 5, 0], [6, 1, 2]]),
        teachers=ClicksSaid(*zip(*said, strict=True)),
    )


def student_side(table: np.ndarray, batch: Clicks, sample: int):
    kept = batch.history_mask[sample]
    history = batch.history_index[sample][kept].tolist()
    user = np.mean([table[h] for h in history], axis=0)
    candidates = batch.candidate_index[sample].tolist()
    return history, candidates, user, [float(user @ table[c]) for c in candidates]


def test_finetuning_is_the_mean_cross_entropy_of_the_click() -> None:
    batch = clicks_batch()
    task = FinetuneModule(TableRecommender(8))
    table = task.model.table.detach().numpy()
    losses = [
        cross_entropy(one_hot_first(3), student_side(table, batch, sample)[3])
        for sample in range(2)
    ]
    assert task(batch)["loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_stage_two_is_target_plus_distill_plus_embedding(shared: bool, padded: bool) -> None:
    batch = clicks_batch()
    loss = ClickLossConfig(target=0.2, temperature=T, shared_projection=shared, padded_slots=padded)
    task = FinetuneDistillModule(TableRecommender(8), TEACHER_DIMS, loss)
    assert (task.user_projections is task.news_projections) == shared
    table = task.model.table.detach().numpy()
    target, distill, embedding = [], [], []
    for sample in range(2):
        history, candidates, user, scores = student_side(table, batch, sample)
        if padded:
            history = batch.history_index[sample].tolist()
        said = [batch.teachers.scores[m][sample].double().tolist() for m in range(2)]
        weights, mixed = teacher_mix(said)
        target.append(cross_entropy(one_hot_first(3), scores))
        soft = softmax([s / T for s in mixed])
        distill.append(T**2 * cross_entropy(soft, [s / T for s in scores]))
        distance = 0.0
        for m, weight in enumerate(weights):
            news = batch.teachers.news[m].double().numpy()
            t_user = batch.teachers.users[m][sample].double().numpy()
            of_news = [
                mse(project(task.news_projections, m, news[n]), table[n])
                for n in history + candidates
            ]
            distance += weight * (
                np.mean(of_news) + mse(project(task.user_projections, m, t_user), user)
            )
        embedding.append(distance)
    out = task(batch)
    assert out["losses"]["target"].item() == pytest.approx(np.mean(target), rel=1e-5)
    assert out["losses"]["distill"].item() == pytest.approx(np.mean(distill), rel=1e-5)
    assert out["losses"]["embedding"].item() == pytest.approx(np.mean(embedding), rel=1e-5)


def test_no_gradient_reaches_the_teachers_and_all_reaches_the_projections() -> None:
    batch = pairs_batch()
    batch.teachers.map(lambda said: said.requires_grad_(True))
    task = PostTrainDistillModule(TableEncoder(10), TEACHER_DIMS, LossConfig())
    out = task(batch)
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.parameters())
    assert not out["losses"]["target"].requires_grad
