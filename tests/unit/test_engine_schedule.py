"""Length of a run, learning rate, and which steps become teachers: pure functions."""

import pytest

from trainer.config.schema import CopiesConfig, OptimizerConfig, RunConfig
from trainer.engine.copies import copy_steps
from trainer.engine.schedule import epochs_read, learning_rate_factor, total_steps
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("epochs", "max_steps", "units", "expected"),
    [
        (1.0, None, 96, 3),
        (1.0, None, 97, 4),
        (2.0, None, 97, 7),
        (0.5, None, 128, 2),
        (1.0, 2, 1000, 2),
        (1.0, 500, 96, 3),
        (0.001, None, 10, 1),
        (0.1, None, 960, 3),
        (0.07, None, 3200, 7),  # 7.000000000000001 in floating point
        (1e-12, None, 10, 1),
    ],
)
def test_total_steps_rounds_up_and_is_capped(epochs, max_steps, units, expected):
    run = RunConfig(epochs=epochs, max_steps=max_steps, global_batch=32)
    assert total_steps(run, units) == expected


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(1.0, None, 2), (0.96, None, 1), (2.0, 3, 1), (2.0, 4, 2)]
)
def test_the_epoch_that_the_last_batch_runs_into_is_read(epochs, max_steps, expected):
    """Of 100 units: three batches of 32 lie within an epoch, the fourth runs into the next."""
    run = RunConfig(epochs=epochs, max_steps=max_steps, global_batch=32)
    assert epochs_read(run, 100) == expected


def test_constant_schedule_after_warmup():
    optimizer = OptimizerConfig(warmup_steps=4)
    factors = [learning_rate_factor(optimizer, step, 10) for step in range(1, 11)]
    assert factors == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6


def test_linear_schedule_would_reach_zero_right_after_the_end():
    optimizer = OptimizerConfig(schedule="linear", warmup_steps=2)
    factors = [learning_rate_factor(optimizer, step, 6) for step in range(1, 8)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_cosine_schedule_falls_from_one_to_zero_through_a_half():
    optimizer = OptimizerConfig(schedule="cosine")
    assert learning_rate_factor(optimizer, 1, 8) == 1.0
    assert learning_rate_factor(optimizer, 5, 8) == pytest.approx(0.5)
    assert learning_rate_factor(optimizer, 9, 8) == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_beyond_the_end_the_rate_stays_zero(schedule):
    optimizer = OptimizerConfig(schedule=schedule, warmup_steps=2)
    factors = [learning_rate_factor(optimizer, step, 6) for step in (7, 8, 20)]
    assert factors == [0.0, 0.0, 0.0]


def test_warmup_longer_than_the_run_does_not_divide_by_zero():
    optimizer = OptimizerConfig(schedule="linear", warmup_steps=10)
    assert learning_rate_factor(optimizer, 10, 10) == 1.0
    assert 0.0 <= learning_rate_factor(optimizer, 11, 10) <= 1.0


@pytest.mark.parametrize(
    ("copies", "steps", "expected"),
    [
        (CopiesConfig(), 1000, []),
        (CopiesConfig(rule="every_k", every=300), 1000, [300, 600, 900]),
        (CopiesConfig(rule="first_m", every=100, count=3), 1000, [100, 200, 300]),
        (CopiesConfig(rule="last_m", every=500, count=4), 61743, [60500, 61000, 61500, 61743]),
        (CopiesConfig(rule="last_m", every=500, count=2), 1000, [500, 1000]),
        (CopiesConfig(rule="last_m", every=500, count=1), 1100, [1100]),
        (CopiesConfig(rule="list", steps=(7, 3, 7)), 10, [3, 7]),
    ],
)
def test_copy_steps(copies, steps, expected):
    assert copy_steps(copies, steps) == expected


@pytest.mark.parametrize(
    "copies",
    [
        CopiesConfig(rule="first_m", every=300, count=4),
        CopiesConfig(rule="last_m", every=600, count=3),
        CopiesConfig(rule="every_k", every=1001),
        CopiesConfig(rule="list", steps=(1, 1001)),
        CopiesConfig(rule="list", steps=(0,)),
    ],
)
def test_copies_that_the_run_cannot_make_are_refused(copies):
    with pytest.raises(ConfigError, match=r"run\.copies"):
        copy_steps(copies, 1000)
