"""What a resumed run may change, and what it may not: the whole list, and the schedule."""

import dataclasses
from typing import Any

import pytest
from helpers.inprocess import state, train, train_until_crash
from helpers.launch import metrics

from trainer.checkpoint.resume import MAY_CHANGE, check_same_run
from trainer.config.flat import flatten, setting_types, to_dict
from trainer.errors import CheckpointError, ConfigError
from trainer.tasks.registry import TASKS, all_settings, task_named

ALLOWED = """
run.dir run.max_steps run.epochs run.log_every run.checkpoint_every run.keep_checkpoints
run.keep_every run.best_metric run.best_is run.export run.background_saves run.not_finite
run.not_finite_budget run.hang_timeout_s run.profile_steps run.peak_tflops run.deepspeed
run.micro_batch run.compile run.allow_emulated run.activation_checkpointing
run.copies.rule run.copies.every run.copies.count run.copies.steps
data.workers data.batch_tokens data.share_titles data.articles data.clicks
data.check_columns data.cache_dir data.cache_gib data.fetch_ahead data.fetch_attempts
validation.clicks validation.every validation.patience validation.min_delta
teachers.follow teachers.follow_timeout_s
"""
"""Settings that change how a run is computed and kept, and none that changes what it learns."""


def test_what_may_change_is_this_list() -> None:
    assert set(ALLOWED.split()) == MAY_CHANGE


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return found


@pytest.mark.parametrize(
    ("task", "key"),
    [
        (name, key)
        for name in TASKS
        for key in sorted(setting_types(task_named(name).config).keys() - set(ALLOWED.split()))
    ],
)
def test_every_other_setting_is_refused_by_its_name(task: str, key: str) -> None:
    now = task_named(task).config()
    before = nested(flatten(to_dict(now)) | {key: "something else"})
    with pytest.raises(CheckpointError, match=rf"{key} was 'something else' and is now .*"):
        check_same_run(before, now, "data", "data", all_settings())


def test_settings_of_other_tasks_that_older_versions_stored_are_passed_over() -> None:
    now = task_named("finetune").config()
    stored = flatten(to_dict(now))
    older = nested(stored | {"loss.temperature": 3.0, "data.negatives_from": "window"})
    check_same_run(older, now, "data", "data", all_settings())
    newer = nested(stored | {"data.of_a_later_version": 1})
    with pytest.raises(CheckpointError, match=r"data\.of_a_later_version was 1 and is now None"):
        check_same_run(newer, now, "data", "data", all_settings())


def test_a_setting_younger_than_the_checkpoint_was_at_its_default() -> None:
    now = task_named("finetune").config()
    stored = flatten(to_dict(now))
    del stored["data.num_negatives"]
    check_same_run(nested(stored), now, "data", "data", all_settings())
    other = dataclasses.replace(now, data=dataclasses.replace(now.data, num_negatives=3))
    with pytest.raises(CheckpointError, match=r"data\.num_negatives was 9 and is now 3"):
        check_same_run(nested(stored), other, "data", "data", all_settings())


@pytest.mark.parametrize(
    ("schedule", "done", "steps"),
    [("linear", 13, 24), ("cosine", 13, 16), ("cosine", 20, 24)],
)
def test_another_length_is_refused_where_the_schedule_depends_on_it(
    tmp_path, schedule, done, steps
) -> None:
    run = tmp_path / "run"
    shape = {"optimizer__schedule": schedule}
    if done == 20:
        train(run, **shape)
    else:
        train_until_crash(run, done, **shape)
    with pytest.raises(ConfigError, match="was to have 20 steps"):
        train(run, **shape, run__max_steps=steps)
    train(run, **shape)  # with its own length it goes on


def test_fewer_epochs_are_refused_like_fewer_steps(tmp_path) -> None:
    train_until_crash(tmp_path / "run", 13, optimizer__schedule="cosine")
    with pytest.raises(ConfigError, match=r"was to have 20 steps, but .* make it 1\d"):
        train(tmp_path / "run", optimizer__schedule="cosine", run__epochs=2.2, run__max_steps=19)


def test_another_length_is_taken_while_the_rates_were_those_of_the_warm_up(tmp_path) -> None:
    """The run ends as one that had this length from its start."""
    shape = {"optimizer__schedule": "cosine", "optimizer__warmup_steps": 10}
    train_until_crash(tmp_path / "run", 13, **shape)
    train(tmp_path / "run", **shape, run__max_steps=24)
    train(tmp_path / "whole", **shape, run__max_steps=24)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert state(tmp_path / "run")["step"] == 24


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer__warmup_steps", 3),
        ("optimizer__schedule", "cosine"),
        ("optimizer__lr", 0.5),
        ("optimizer__backbone_lr", 0.5),
        ("optimizer__betas", (0.8, 0.9)),
        ("optimizer__max_grad_norm", 1.0),
        ("data__num_negatives", 4),
    ],
)
def test_every_other_part_of_the_schedule_is_refused(tmp_path, key, value) -> None:
    train_until_crash(tmp_path / "run", 6)
    with pytest.raises(CheckpointError, match=key.replace("__", r"\.")):
        train(tmp_path / "run", **{key: value})
