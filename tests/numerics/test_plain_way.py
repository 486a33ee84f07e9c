"""The same loss, less work: finetuning and stage II against the plain padded way.

The plain way encodes every history slot and candidate of every click, empty slots too, each padded
to the longest title there may be, in one batch: no title is shared, nothing is cut into groups. Its
losses are written out here with torch alone. Ours must have the same losses and gradients.
"""

import numpy as np
import pytest
import torch
from helpers.world import TinyWorld, make_world
from torch.nn import functional as F

from shards.click_batch import read_clicks
from shards.order import BatchRows
from shards.stream import Stream
from trainer.tasks.build import BuiltTask, build
from trainer.tasks.texts import Grouping
from trainer.teacher_server.signals import ClickRows

BATCH, HISTORY, LONGEST = 8, 5, 10
T, TARGET, DISTILL, EMBEDDING = 2.0, 0.2, 1.5, 0.7
LOSS = {
    "loss__temperature": T,
    "loss__target": TARGET,
    "loss__distill": DISTILL,
    "loss__embedding": EMBEDDING,
}
STILL = {"model__backbone__hidden_dropout": 0.0, "model__backbone__attention_dropout": 0.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("plain"), num_articles=60)


def built_task(world: TinyWorld, task: str, **more) -> BuiltTask:
    if task == "finetune_distill":
        more["teachers__models"] = tuple(world.teacher("finetune", seed) for seed in (1, 2))
        more["teachers__source"] = "live"
    torch.manual_seed(4)
    built = build(
        world.config(
            task,
            **(LOSS if task.endswith("distill") else {}),
            **STILL,
            **more,
        )
    )
    built.module.train()
    return built


def plain_losses(built: BuiltTask, batch: BatchRows) -> dict[str, torch.Tensor]:
    """Every slot encoded, padded to the longest."""
    data, model = built.data, built.module.model
    clicks = read_clicks(data.clicks, data.rule, batch.rows, batch.epochs)
    rows = np.concatenate([clicks.history_BH, clicks.candidates_BC], axis=1)
    ids, mask = data.news.batch(np.maximum(rows, 0).ravel(), pad_to_max=True)
    assert ids.shape == (BATCH * (HISTORY + 4), LONGEST)
    vectors = model.encode_news(torch.from_numpy(ids), torch.from_numpy(mask))
    vectors = vectors.reshape(*rows.shape, -1)
    history, candidates = vectors[:, :HISTORY], vectors[:, HISTORY:]
    users = model.encode_users(history, torch.from_numpy(clicks.mask_BH))
    scores = torch.einsum("bce,be->bc", candidates, users)
    first = torch.zeros(BATCH, dtype=torch.long)
    losses = {"target": F.cross_entropy(scores, first)}
    if data.signals is None:
        return losses
    asked = ClickRows(rows.ravel(), clicks.impression_B, clicks.positions_BC)
    told = data.signals.say(data.signals.read(asked)).map(lambda tensor: tensor.float())
    teachers = torch.stack(told.scores)
    beta = torch.stack(
        [-F.cross_entropy(scores_m, first, reduction="none") for scores_m in teachers]
    ).softmax(dim=0)
    soft = (beta[:, :, None] * teachers).sum(dim=0)
    per_click = -((soft / T).softmax(-1) * (scores / T).log_softmax(-1)).sum(-1)
    losses["distill"] = T**2 * per_click.mean()
    counted = torch.cat([torch.from_numpy(clicks.mask_BH), torch.ones(BATCH, 4)], dim=1)
    distance = torch.zeros(BATCH)
    for m in range(2):
        news = [torch.zeros(1, vectors_m.shape[1]) for vectors_m in told.news]
        user = list(news)
        news[m], user[m] = told.news[m], told.users[m]
        news_m = built.module.news_projections(news)[m].reshape(vectors.shape)
        user_m = built.module.user_projections(user)[m]
        of_slots = ((news_m - vectors) ** 2).mean(-1)
        of_news = (of_slots * counted).sum(-1) / counted.sum(-1)
        distance = distance + beta[m] * (of_news + ((user_m - users) ** 2).mean(-1))
    losses["embedding"] = distance.mean()
    return losses


def gradients_of(built: BuiltTask, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    built.module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in built.module.named_parameters() if p.grad is not None}


def check_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    whole = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    for name, gradient in wanted.items():
        # Biases of keys have no gradient but rounding: they are measured by the whole.
        allowed = 1e-5 * max(gradient.norm(), 0.01 * whole)
        assert (found[name] - gradient).norm() <= allowed, name


@pytest.mark.parametrize("user_encoder", ["additive", "nrms"])
@pytest.mark.parametrize("task", ["finetune", "finetune_distill"])
def test_losses_and_gradients_are_those_of_every_slot_padded_and_encoded(world, task, user_encoder):
    heads = {"model__user_heads": 2} if user_encoder == "nrms" else {}
    built = built_task(world, task, model__user_encoder=user_encoder, **heads)
    weights = {"target": TARGET, "distill": DISTILL, "embedding": EMBEDDING}
    if task == "finetune":
        weights = {"target": 1.0}
    stream = Stream(built.data.order, BATCH)
    for batch, grouping in ((next(stream), Grouping()), (next(stream), Grouping(48))):
        expected = plain_losses(built, batch)
        wanted = gradients_of(built, sum(weights[name] * loss for name, loss in expected.items()))
        built.data.grouping = grouping
        made = built.data.collate(batch)
        slots = made.batch.history_mask.numel() + made.batch.candidate_index.numel()
        assert made.counts.texts < 0.9 * slots, "the batch must share some titles"
        assert (~made.batch.history_mask).any()
        out = built.module(made.batch)
        assert out["losses"].keys() == expected.keys()
        for name, loss in expected.items():
            assert out["losses"][name].item() == pytest.approx(loss.item(), rel=1e-5)
        check_same(gradients_of(built, out["loss"]), wanted)


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("user_block", [1, 4])
def test_every_click_comes_once_an_epoch_with_fresh_or_static_negatives(
    world, is_static, user_block
):
    """All clicks are used, where the released code reads the first 26.6% of them, four times."""
    built = built_task(
        world,
        "finetune",
        data__static_negatives=is_static,
        data__user_block=user_block,
        data__window_shards=2,
    )
    data = built.data
    log = [data.clicks.reader.shard_set.sample(row) for row in range(60)]
    shown = [
        (row, candidate)
        for row, sample in enumerate(log)
        for candidate, clicked in zip(sample["candidates"], sample["clicks"], strict=True)
        if clicked and not all(sample["clicks"])
    ]
    seen: list[dict[tuple[int, int], list[int]]] = [{}, {}]
    for rows in Stream(data.order, 1):
        epoch = int(rows.epochs[0])
        if epoch == 2:
            break
        clicks = read_clicks(data.clicks, data.rule, rows.rows, rows.epochs)
        clicked, *negatives = clicks.candidates_BC[0].tolist()
        key = (int(clicks.impression_B[0]), clicked)
        assert key not in seen[epoch]
        seen[epoch][key] = negatives
        sample = log[key[0]]
        unclicked = [
            c for c, y in zip(sample["candidates"], sample["clicks"], strict=True) if not y
        ]
        assert set(negatives) <= set(unclicked)
        assert len(set(negatives)) == min(3, len(unclicked))
    for epoch in (0, 1):
        assert sorted(seen[epoch]) == sorted(shown)
    changed = [key for key in shown if seen[0][key] != seen[1][key]]
    assert not changed if is_static else len(changed) > 0.3 * len(shown)
