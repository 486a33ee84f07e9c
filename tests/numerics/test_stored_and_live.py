"""Two hundred steps with stored teachers, against the same steps with the teachers in memory."""

import itertools

import numpy as np
import pytest
import torch
from helpers.world import TinyWorld, make_world

from shards.clicks import ClickColumn
from shards.stream import Stream
from trainer.export.folder import load_export
from trainer.tasks.build import build
from trainer.teacher_server.fill import FillRequest, fill
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.signals import ClickRows, ClicksSaid, TextRows, TextsSaid, tensors

STEPS, FEWER = 200, 40


class LiveAsFilled:
    """Live teachers that compute a batch's rows among their whole shards, as filling does.

    The rounding of a matrix product depends on what it is computed together with, so live teachers
    that encode a batch's texts alone are equal to the stored ones to rounding only; these are equal
    to the bit.
    """

    columns = ()

    def __init__(self, world: TinyWorld, teachers: list[str]) -> None:
        self.models = [
            TeacherModel(load_export(one), FillRequest(world.articles)) for one in teachers
        ]
        self.articles, self.impressions = world.articles, world.impressions
        self.clicks = ClickColumn.open(world.impressions)

    def read(self, rows: TextRows | ClickRows) -> TextsSaid | ClicksSaid:
        said = [
            self._texts(model, rows) if isinstance(rows, TextRows) else self._clicks(model, rows)
            for model in self.models
        ]
        kind = TextsSaid if isinstance(rows, TextRows) else ClicksSaid
        return kind(*(tensors(of_all) for of_all in zip(*said, strict=True)))

    def _texts(self, model: TeacherModel, rows: TextRows) -> tuple[np.ndarray, ...]:
        titles = by_shard(self.articles, rows.titles, model.titles)
        return titles, by_shard(self.articles, rows.bodies, model.bodies)

    def _clicks(self, model: TeacherModel, rows: ClickRows) -> tuple[np.ndarray, ...]:
        news_NE = by_shard(self.articles, np.arange(self.articles.num_rows), model.titles)
        users, scores = [], []
        for shard in range(len(self.impressions.shards)):
            of_shard = np.array(self.impressions.rows_of(shard))
            some, values, offsets = model.impressions(
                lambda rows: news_NE[rows], self.clicks, of_shard
            )
            users.append(some)
            scores += [values[a:b] for a, b in itertools.pairwise(offsets)]
        both = zip(rows.impressions, rows.positions, strict=True)
        shown = np.stack([scores[row][places] for row, places in both])
        return news_NE[rows.news], np.concatenate(users)[rows.impressions], shown


def by_shard(articles, rows, encode):
    """Vectors of rows, each computed with its whole shard."""
    shards = np.searchsorted(articles.shard_starts, rows, side="right") - 1
    out = None
    for shard in np.unique(shards):
        of_shard = encode(np.array(articles.rows_of(shard)))
        out = np.empty((len(rows), of_shard.shape[1]), np.float32) if out is None else out
        here = shards == shard
        out[here] = of_shard[rows[here] - articles.shard_starts[shard]]
    return out


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny products are quickest so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def losses(world, stage, teachers, source, dtype, steps=STEPS):
    """All terms of every step of a training, [steps, 4]."""
    task = "post_train_distill" if stage == 1 else "finetune_distill"
    torch.manual_seed(0)
    built = build(
        world.config(
            task,
            teachers__models=teachers,
            teachers__source="live" if source == "live" else "stored",
            teachers__dtype=dtype,
        )
    )
    if source == "as filled":
        built.data.signals = LiveAsFilled(world, teachers)
    optimizer = torch.optim.Adam(built.module.parameters(), lr=1e-3)
    found = []
    for step, rows in zip(range(steps), Stream(built.data.order, 8), strict=False):
        torch.manual_seed(step)
        out = built.module(built.data.collate(rows).batch)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        found.append([out["loss"].item(), *(term.item() for term in out["losses"].values())])
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_hundred_steps(tmp_path, stage):
    """float32: the same losses to the bit as those teachers live; float16 and int8: within the
    precision stated for them; and live teachers that encode each batch alone: to rounding."""
    world = make_world(tmp_path, num_impressions=40)
    task = "post_train" if stage == 1 else "finetune"
    teachers = [world.teacher(task, seed) for seed in range(2)]
    impressions = world.impressions if stage == 2 else None
    for dtype in ("float32", "float16", "int8"):
        fill(teachers, FillRequest(world.articles, impressions, dtype=dtype), lambda line: None)
    exact = losses(world, stage, teachers, "stored", "float32")
    np.testing.assert_array_equal(losses(world, stage, teachers, "as filled", "float32"), exact)
    assert exact[-1, 0] < exact[0, 0]
    for source, dtype, tolerance, steps in (
        ("stored", "float16", 5e-4, STEPS),
        ("stored", "int8", 1e-2, FEWER),
        ("live", "float32", 1e-4, FEWER),
    ):
        found = losses(world, stage, teachers, source, dtype, steps)
        error = np.abs(found / exact[:steps] - 1)
        assert error.max() < tolerance, (source, dtype, error.max(axis=0))
        assert dtype == "float32" or error.max() > 0
