"""Live teachers are computed in the module half, on the batch's device, in no module's weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.teacher_columns import request, silent, teachers_of
from helpers.world import TinyWorld, make_world

from shards.stream import Stream
from trainer.batch import Batch
from trainer.tasks.build import BuiltTask, build
from trainer.tasks.live import LiveTeacher
from trainer.teacher_server.fill import fill

TASKS = {1: "post_train_distill", 2: "finetune_distill"}


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    return make_world(tmp_path)


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def built_with(world: TinyWorld, stage: int, source: str, teachers: list[str]) -> BuiltTask:
    torch.manual_seed(0)
    options: dict[str, Any] = {"teachers__source": source, "teachers__dtype": "float32"}
    return build(world.config(TASKS[stage], teachers__models=teachers, **options))


@pytest.mark.parametrize("stage", [1, 2])
def test_the_loader_computes_nothing_and_the_module_everything(
    world: TinyWorld, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = built_with(world, stage, "live", teachers_of(world, stage))
    rows = next(Stream(built.data.order, 8))

    def refuse(*_: object) -> None:
        raise AssertionError("a teacher was computed")

    monkeypatch.setattr(LiveTeacher, "encode", refuse)
    batch = built.data.collate(rows).batch
    assert not any(tensor.is_floating_point() for tensor in tensors_of(batch.teachers))
    with pytest.raises(AssertionError, match="a teacher was computed"):
        built.module(batch)


@pytest.mark.parametrize("stage", [1, 2])
def test_no_module_holds_the_teachers_and_no_gradient_reaches_them(
    world: TinyWorld, stage: int
) -> None:
    teachers = teachers_of(world, stage)
    fill(teachers, request(world, stage, dtype="float32"), silent)
    live, stored = (built_with(world, stage, one, teachers) for one in ("live", "stored"))
    assert live.module.state_dict().keys() == stored.module.state_dict().keys()
    assert len(list(live.module.modules())) == len(list(stored.module.modules()))
    rows = next(Stream(live.data.order, 8))
    live.module(live.data.collate(rows).batch)["loss"].backward()
    for teacher in live.data.signals.teachers:
        assert not teacher.model.training
        assert all(weights.grad is None for weights in teacher.model.parameters())
    # What they say is theirs, whatever the student's precision, and may be used in its graph.
    asked = live.data.collate(rows).batch.teachers
    said = tensors_of(live.data.signals.say(asked))
    with torch.autocast("cpu", torch.bfloat16):
        in_bf16 = tensors_of(live.data.signals.say(asked))
    expected = tensors_of(stored.data.collate(rows).batch.teachers)
    for found, again, values in zip(said, in_bf16, expected, strict=True):
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6)
        assert torch.equal(again, found)
        weight = torch.ones((), requires_grad=True)
        (found * weight).sum().backward()
        assert not found.requires_grad and weight.grad is not None


def test_a_teacher_moves_to_the_device_of_the_batch(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = LiveTeacher(teachers_of(world, 1, 1)[0], world.articles)
    texts = teacher.lay_out(teacher.news, np.arange(8))
    monkeypatch.setattr("trainer.tasks.live.encode_texts", lambda _, texts: texts.parts[0].inputs)
    for device in ("cpu", "meta"):  # which no model computes on
        teacher.encode(texts.to(torch.device(device)))
        assert {weights.device.type for weights in teacher.model.parameters()} == {device}
