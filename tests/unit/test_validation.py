"""Validation while a click task trains: the numbers, the best step, and the end of patience."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.evaluated import evaluated
from helpers.inprocess import alone, train
from helpers.launch import metrics
from helpers.sets import impression_samples, make_articles, make_impressions
from helpers.toy import ToyData
from helpers.world import TinyWorld, make_world
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.cli.main import main
from trainer.config.clicks import ClickValidationConfig
from trainer.config.flat import flatten, to_dict
from trainer.config.validate import validate
from trainer.engine.callback import Run
from trainer.engine.distributed import start
from trainer.engine.step import Step
from trainer.engine.trainer import Trainer
from trainer.engine.validation import Measured, Progress, Validator
from trainer.engine.watchdog import VALIDATE
from trainer.errors import CheckpointError, ConfigError, TinyNewsRecError, TrainingError
from trainer.evaluate.metrics import METRIC_NAMES, ranking_metrics
from trainer.tasks.build import build
from trainer.tasks.finetune.task import FinetuneConfig

DAY = "2019-11-14"
EVERY, STEPS = 2, 12


@dataclass
class Worlds:
    """A log with five days of impressions, and apart from it those of two of its days."""

    world: TinyWorld
    held_out: Path
    made: dict[str, Path] = field(default_factory=dict)

    def settings(self, run: str, **changes: Any) -> dict[str, Any]:
        clicks = str(self.world.impressions.path)
        given = {
            "run__dir": str(self.world.folder / "runs" / run),
            "run__seed": 3,
            "run__max_steps": STEPS,
            "run__epochs": 100.0,
            "run__log_every": 1,
            "run__checkpoint_every": 5,
            "run__keep_checkpoints": 1,
            "optimizer__lr": 0.02,
            "data__history_length": 1,
            "data__clicks_until": DAY,
            "data__workers": 0,
            "validation__clicks": clicks,
            "validation__since": DAY,
            "validation__every": EVERY,
        }
        return given | changes

    def train(self, run: str, *, crash_at: int | None = None, **changes: Any) -> Path:
        config = self.world.config("finetune", **self.settings(run, **changes))
        validate(config)
        with start(config) as distributed:
            task = build(config)
            if crash_at is not None:
                collate = task.data.collate

                def crashing(batch):
                    if batch.position.samples + batch.position.epoch * 10**6 >= 8 * crash_at:
                        raise TrainingError("crash of the test")
                    return collate(batch)

                task.data.collate = crashing  # type: ignore[method-assign]
            trainer = Trainer(
                config, task.module, task.data, task.export, distributed, task.validation
            )
            return trainer.fit()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Worlds:
    folder = tmp_path_factory.mktemp("validation")
    world = make_world(folder, num_articles=60, num_impressions=150)
    samples = [s for s in impression_samples(150, 60) if s["time"] >= DAY]
    held_out = make_impressions(folder / "held-out", world.articles, samples=samples)
    return Worlds(world, held_out.path)


@pytest.fixture(scope="module")
def validated(worlds) -> Path:
    """A run to its last step that also leaves its model of two validated steps."""
    copies = {"run__copies__rule": "list", "run__copies__steps": (4, STEPS)}
    return worlds.train("validated", **copies)


def aucs(run: Path, name: str = "auc") -> dict[int, float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: r[f"valid/{name}"] for r in records if f"valid/{name}" in r}


def state(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "state.json").read_text()))


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def model_of(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return ours.keys() == theirs.keys() and all(theirs[k].equal(v) for k, v in ours.items())


def test_numbers_are_those_of_tnr_evaluate_of_that_steps_export(worlds, validated):
    assert sorted(aucs(validated)) == list(range(EVERY, STEPS + 1, EVERY))
    records = [json.loads(line) for line in (validated / "metrics.jsonl").open()]
    for step in (4, STEPS):
        export = validated / "copies" / f"step_{step:08d}"
        articles, impressions = worlds.world.articles.path, worlds.world.impressions.path
        found = evaluated(export, articles, worlds.held_out)
        logged = {name: records[step - 1][f"valid/{name}"] for name in METRIC_NAMES}
        assert logged == pytest.approx(found["metrics"], abs=1e-9)
        bounded = evaluated(export, articles, impressions, "--since", DAY, "--until", "2019-11-16")
        assert bounded["metrics"] == pytest.approx(found["metrics"], abs=1e-9)
        counts = bounded["counts"]
        assert counts["impressions"] == found["counts"]["impressions"]
        assert sum(counts[key] for key in ("impressions", "skipped", "outside")) == 150
        segments = (each["segments"]["history"].values() for each in (bounded, found))
        ours, theirs = ([one["impressions"] for one in each] for each in segments)
        assert ours == theirs and sum(ours) == counts["impressions"]
    log = (validated / "log" / "train.log").read_text()
    assert f"({found['counts']['impressions']} impressions" in log


def test_training_is_the_same_to_the_bit_without(worlds, validated):
    free = {"validation__clicks": None, "validation__since": None}
    plain = worlds.train("plain", **free)
    for name in ("train/loss", "train/grad_norm", "train/accuracy"):
        assert metrics(plain, name) == metrics(validated, name)
    copy = validated / "copies" / f"step_{STEPS:08d}"
    assert same(model_of(plain / "export"), model_of(copy))
    assert "chosen" not in json.loads((plain / "export" / "tnr.json").read_text())
    assert not (plain / "checkpoints" / "best").exists()


def test_best_step_is_kept_named_and_exported(validated):
    found = aucs(validated)
    best = max(found, key=lambda step: (found[step], -step))
    assert 0 < best < STEPS, "choose another seed: the best step must not be the last"
    folder = validated / "checkpoints" / f"step_{best:08d}"
    assert (validated / "checkpoints" / "best").read_text() == f"{folder.name}\n"
    kept = sorted(path.name for path in (validated / "checkpoints").glob("step_*"))
    assert kept == [folder.name, f"step_{STEPS:08d}"]
    info = json.loads((validated / "export" / "tnr.json").read_text())
    assert (info["step"], info["chosen"]) == (best, "best valid/auc")
    assert info["valid/auc"] == found[best]
    stored = {k.removeprefix("model."): v for k, v in model_of(folder).items()}
    exported = model_of(validated / "export")
    assert same(exported, {name: stored[name] for name in exported})
    log = (validated / "log" / "train.log").read_text()
    assert f"has the weights of step {best} of {STEPS}: best valid/auc" in log
    records = [json.loads(line) for line in (validated / "metrics.jsonl").open()]
    assert records[-1]["valid/best_auc"] == found[best]
    events = EventAccumulator(str(validated / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("valid/ndcg10")] == sorted(found)
    compared = events.PluginTagToContent("hparams")["_hparams_/experiment"]
    assert b"valid/best_auc" in compared and b"validation.since" in compared


def test_last_step_is_exported_if_asked_for(worlds, validated):
    run = worlds.train("last", run__export="last")
    assert same(model_of(run / "export"), model_of(validated / "copies" / f"step_{STEPS:08d}"))
    info = json.loads((run / "export" / "tnr.json").read_text())
    assert (info["step"], info["chosen"]) == (STEPS, "last step")
    with pytest.raises(ConfigError, match=r"run\.export was 'last' when .*move that folder away"):
        worlds.train("last")
    (run / "export").rename(run / "before")
    worlds.train("last")
    assert same(model_of(run / "export"), model_of(validated / "export"))


def test_patience_ends_the_run_at_one_step_however_often_it_was_interrupted(worlds):
    # With such a min_delta only the first validation is an improvement.
    rule = {"validation__patience": 3, "validation__min_delta": 1.0}
    whole = worlds.train("whole", **rule)
    end = EVERY * (1 + 3)
    assert max(metrics(whole)) == end and sorted(aucs(whole)) == [2, 4, 6, 8]
    said = state(whole)
    assert (said["state"], said["step"], said["steps"]) == ("finished", end, STEPS)
    assert "did not improve in 3 validations" in said["reason"]
    for crash_at in (4, 7, 8):
        with pytest.raises(TrainingError, match="crash of the test"):
            worlds.train("torn", crash_at=crash_at, **rule)
    torn = worlds.train("torn", **rule)
    starts = [json.loads(line) for line in (torn / "starts.jsonl").open()]
    assert 0 < starts[1]["from_step"] < starts[-1]["from_step"]
    assert metrics(torn) == metrics(whole) and aucs(torn) == aucs(whole)
    assert state(torn) == said
    assert same(model_of(torn / "export"), model_of(whole / "export"))

    before = (whole / "metrics.jsonl").read_bytes()
    worlds.train("whole", **rule)  # it stays finished, also with more steps in sight
    worlds.train("whole", **rule | {"run__max_steps": STEPS + 10})
    assert (whole / "metrics.jsonl").read_bytes() == before
    assert len((whole / "starts.jsonl").read_text().splitlines()) == 1
    (whole / "export").rename(whole / "export-before")
    worlds.train("whole", **rule)  # a start after a kill before the export makes that alone
    assert (whole / "metrics.jsonl").read_bytes() == before
    assert same(model_of(whole / "export"), model_of(whole / "export-before"))
    worlds.train("whole", **rule | {"validation__patience": 4})  # a longer patience goes on
    assert max(metrics(whole)) == end + EVERY


def test_another_period_or_other_impressions_are_another_run(worlds):
    with pytest.raises(TrainingError):
        worlds.train("other", crash_at=6)
    checkpoints = worlds.world.folder / "runs" / "other" / "checkpoints"
    values = {}
    for folder in checkpoints.glob("step_*"):
        values[int(folder.name[5:])] = json.loads((folder / "state.json").read_text())["metric"]
    # Step 5 is saved, but was not validated: it must not pass for the best.
    assert len(values) == 2
    assert [step for step, entry in values.items() if entry["value"] is None] == [5]
    with pytest.raises(CheckpointError, match=r"data.clicks_until was '2019-11-14' and is now"):
        worlds.train("other", data__clicks_until="2019-11-13")
    with pytest.raises(CheckpointError, match=r"validation.since was '2019-11-14' and is now"):
        worlds.train("other", validation__since="2019-11-15")
    with pytest.raises(CheckpointError, match=r"validation.clicks \(the impressions that are"):
        worlds.train("other", validation__clicks=str(worlds.held_out), validation__since=DAY)


def test_damaged_best_checkpoint_is_named_with_the_way_out(worlds):
    run = worlds.train("damaged")
    best = (run / "checkpoints" / "best").read_text().strip()
    weights = run / "checkpoints" / best / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (run / "export").rename(run / "before")
    with pytest.raises(CheckpointError, match=r"best by valid/auc, cannot .* --run.export last"):
        worlds.train("damaged")
    worlds.train("damaged", run__export="last")
    assert state(run)["state"] == "finished"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation__since": None}, r"impressions to validate on are trained on, too .*before"),
        ({"data__clicks_until": None}, "set data.clicks_until and validation.since"),
        ({"validation__since": "2019-12-01"}, r"none of the 150 impressions .*2019-11-15 08:00"),
        ({"data__clicks_until": "2018-11-14"}, r"none of the .* clicks .*runs from 2019-11-11"),
        ({"validation__until": "2019-11-13"}, "validation.since 2019-11-14 is not before"),
        ({"validation__since": "friday"}, "validation.since is 'friday'"),
        ({"validation__every": 0}, "validation.every is 0; expected at least 1"),
        ({"validation__patience": 6}, "in 12 steps, one every 2, it has 6 validations"),
        ({"run__best_metric": "train/loss"}, "picks its best step by valid/auc"),
        ({"validation__clicks": None}, "validation.since is set, but validation.clicks is not"),
    ],
)
def test_wrong_splits_and_settings_are_one_clear_line(worlds, changes, message):
    with pytest.raises(TinyNewsRecError, match=message) as stopped:
        worlds.train("wrong", **changes)
    assert "\n" not in str(stopped.value)
    assert not (worlds.world.folder / "runs" / "wrong").exists()


def test_sets_that_cannot_be_validated_on_are_refused(worlds, tmp_path):
    free = {"validation__since": None}
    articles = worlds.world.articles
    bare = make_impressions(tmp_path / "bare", articles, labelled=False)
    with pytest.raises(TinyNewsRecError, match="has no labels"):
        worlds.train("wrong", validation__clicks=str(bare.path), **free)
    others = make_articles(tmp_path / "others", 61)
    foreign = make_impressions(tmp_path / "foreign", others)
    with pytest.raises(TinyNewsRecError, match=r"validation\.clicks .* built over other articles"):
        worlds.train("wrong", validation__clicks=str(foreign.path), **free)
    sample = impression_samples(1, 60)[0] | {"candidates": [1, 2], "clicks": [1, 1]}
    one_class = make_impressions(tmp_path / "one", articles, samples=[sample])
    with pytest.raises(TinyNewsRecError, match="both a clicked and another candidate"):
        worlds.train("wrong", validation__clicks=str(one_class.path), **free)
    with pytest.raises(TinyNewsRecError, match=r"task post_train does not read validation\.clicks"):
        worlds.world.config("post_train", validation__clicks="x")


def test_impressions_without_a_time_are_in_no_period_and_counted(worlds, tmp_path):
    samples = impression_samples(40, 60)
    for row in (3, 8, 21):  # the first two would be of the period
        samples[row]["time"] = "soon"
    log = make_impressions(tmp_path / "log", worlds.world.articles, samples=samples)
    changes = {"validation__clicks": str(log.path)}
    found = build(worlds.world.config("finetune", **worlds.settings("x", **changes))).validation
    wanted = [row for row, s in enumerate(samples) if DAY <= s["time"] < "2020"]
    assert found is not None and found.rows.tolist() == wanted and len(wanted) == 14
    assert "3 impressions of the log have no time, so they are in no period" in found.notes[0]


def test_a_part_of_the_impressions_is_even_and_always_the_same(worlds):
    def rows(most):
        changes = {"validation__max_impressions": most}
        config = worlds.world.config("finetune", **worlds.settings("part", **changes))
        found = build(config).validation
        assert found is not None and f"validation on {len(found.rows)} of the 150" in found.notes[0]
        return found.rows.tolist()

    everything = rows(None)
    assert rows(10**6) == everything
    chosen = rows(13)
    assert len(chosen) == 13 and set(chosen) < set(everything) and chosen == rows(13)
    places = [everything.index(row) for row in chosen]
    assert max(b - a for a, b in itertools.pairwise(places)) <= len(everything) / 13 + 1


def test_dry_run_and_plan_tell_what_is_trained_and_validated_on(worlds, capsys):
    config = worlds.world.config("finetune", **worlds.settings("dry"))
    settings = flatten(to_dict(config))
    given = {k: v for k, v in settings.items() if v not in (None, (), []) and k != "task"}
    words = [str(word) for key, value in given.items() for word in (f"--{key}", *listed(value))]
    data = build(config).data
    assert main(["train", "finetune", *words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"# {data.order.num_units:,} units x 100 epochs -> {STEPS} optimizer steps" in out
    assert "# training on the clicks before 2019-11-14 00:00:00 (UTC): " in out
    assert "# validation on 60 of the 150 impressions" in out
    assert "they are from 2019-11-14 08:00:03 to 2019-11-15 08:00:59" in out
    assert main(["plan", "finetune", *words]) == 0
    assert "1 newest, 0 permanent, 1 best" in capsys.readouterr().out


class Falling:
    """A validation that finds the model worse every time, and says that it works on it."""

    fingerprint, notes = "falling", ()

    def __init__(self) -> None:
        self.calls = 0

    def measure(self, model, distributed, *, on_part, **_):
        self.calls += 1
        for _ in range(3):
            on_part(1)
        labels = np.eye(self.calls + 1, dtype=np.uint8)[-1]  # the last and worst was clicked
        found = ranking_metrics(-np.arange(self.calls + 1.0), labels, np.array([0, len(labels)]))
        return Measured(values=found.to_dict(), count=1, unit="impressions")


def test_a_run_that_goes_back_counts_no_validation_twice(tmp_path):
    rows = ToyData(seed=3).order.rows(0, 8 * 7, 8 * 7 + 1)
    data = ToyData(seed=3, poisoned=frozenset(rows.tolist()))  # in step 8
    validation = Falling()
    run = train(
        tmp_path / "run",
        data=data,
        validation=validation,
        task="finetune",
        data__clicks="none",
        run__not_finite="reload",
        run__max_steps=10,
        run__checkpoint_every=5,
        validation__clicks="falling",
        validation__every=2,
        validation__metric="mrr",
    )
    assert validation.calls == 5 + 1  # step 6 was validated twice
    assert aucs(run, "without_improvement") == {2: 0.0, 4: 1.0, 6: 2.0, 8: 3.0, 10: 4.0}


def test_a_long_validation_gives_signs_of_life_and_cannot_be_taken_for_a_hang():
    ticks, said = [], []
    settings = ClickValidationConfig(clicks="x", every=3, metric="mrr")
    run = Run(FinetuneConfig(validation=settings), alone(), 7)
    run.at, run.say = ticks.append, said.append
    validator = Validator(run, Falling())
    session = SimpleNamespace(full_model=lambda: torch.nn.Linear(1, 1))
    steps = [Step(number) for number in range(1, 8)]
    for step in steps:
        validator.before_step(step)
        validator.after_step(session, step)
    assert [step.number for step in steps if step.values] == [3, 6, 7]
    assert [step.number for step in steps if step.is_logged] == [3, 6, 7]
    assert ticks == [VALIDATE] * 3 * 4
    assert "validation of step 3: auc 0.0000  mrr 0.5000" in said[0]
    assert "the best mrr so far" in said[0] and "the best mrr is 0.5000 of step 3" in said[1]


def test_any_evaluator_serves_under_the_names_that_it_gives(tmp_path, capsys):
    class Recall:
        fingerprint, notes = "recall", ["measured on pairs"]

        def measure(self, model, distributed, **_):
            return Measured(values={"recall": 0.5, "mrr": 0.25}, count=1200, unit="pairs")

    how = {"validation": Recall(), "run__max_steps": 2, "validation__clicks": "pairs"}
    how |= {"task": "finetune", "data__clicks": "none"}
    run = train(tmp_path / "run", validation__metric="mrr", **how)
    said = capsys.readouterr().out
    assert "validation of step 2: recall 0.5000  mrr 0.2500  (1,200 pairs, " in said
    assert aucs(run, "recall") == {2: 0.5} and aucs(run, "best_mrr") == {2: 0.25}
    with pytest.raises(
        ConfigError, match=r"metric is 'auc', but .* not measure it; expected one of recall, mrr"
    ):
        train(tmp_path / "other", validation__metric="auc", **how)


def test_progress_counts_by_min_delta_but_keeps_whatever_was_best():
    progress = Progress()
    values = [0.5, 0.51, 0.509, 0.53, 0.53, 0.5]
    is_best = [progress.add(step, value, 0.02) for step, value in enumerate(values, start=1)]
    assert is_best == [True, True, False, True, False, False]
    assert (progress.best_step, progress.best) == (4, 0.53)
    assert (progress.reference, progress.stale) == (0.53, 2)
