"""Callbacks: one of a user's own, the order of hooks, and what checkpoints keep of all parts."""

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers.inprocess import StopAfter, save_export, state, train, weights
from helpers.launch import metrics, settings
from helpers.toy import ToyData, ToyTask

import trainer
from trainer.engine.callback import Callback, Callbacks
from trainer.engine.distributed import start
from trainer.engine.trainer import Trainer
from trainer.engine.validation import Measured
from trainer.errors import TrainingError
from trainer.recipes.load import from_settings


@dataclass
class Counter(Callback):
    """Counts the steps of a run over all its starts, has step 7 logged and saved, and notes its
    hooks.
    """

    steps: int = 0
    heard: list[str] = field(default_factory=list)

    def __enter__(self):
        self.heard.append("enter")
        return self

    def __exit__(self, *error):
        self.heard.append("exit")

    def state(self):
        return {"counter": self.steps}

    def resume(self, state):
        self.heard.append("resume")
        self.steps = state.get("counter", 0)

    def on_start(self, session):
        self.heard.append(f"start {session.step}")

    def before_step(self, step):
        self.heard.append(f"before {step.number}")
        step.is_logged |= step.number == 7

    def flag(self, step):
        self.heard.append("flag")
        return 40 + step.number

    def on_flag(self, highest):
        self.heard.append(f"flagged {highest}")

    def after_step(self, session, step):
        self.heard.append(f"after {session.step}")
        self.steps += 1
        step.values["train/counted"] = float(self.steps)
        step.is_saved |= step.number == 7

    def on_log(self, record):
        self.heard.append(f"log {record.values['train/counted']:.0f}")

    def before_checkpoint(self):
        self.heard.append("saving")

    def after_checkpoint(self, number):
        self.heard.append(f"saved {number}")

    def on_end(self, session):
        self.heard.append(f"end {session.step}")

    def on_stop(self, error):
        self.heard.append(f"stop: {error}")


RARELY = {
    "run__log_every": 100,
    "run__checkpoint_every": 100,
    "run__max_steps": 9,
    "run__background_saves": False,
}


def test_a_users_callback_hears_every_hook_and_goes_on_from_a_checkpoint(tmp_path):
    first, second, run = Counter(), Counter(), tmp_path / "run"
    with pytest.raises(TrainingError, match="crash of the test"):
        train(run, data=StopAfter(8 * 9, seed=3), callbacks=[first], **RARELY)
    steps = [f"before {n} flag flagged {40 + n} after {n}" for n in range(1, 10)]
    begun = [*steps[:1], "log 1", *steps[1:7], "log 7 saving saved 7", steps[7]]
    assert " ".join(first.heard) == " ".join(
        ["enter start 0", *begun, "before 9 exit stop: crash of the test"]
    )
    assert state(run)["step"] == 7
    train(run, callbacks=[second], **RARELY)
    ended = "log 9 saving saved 9 end 9 exit"
    assert " ".join(second.heard) == f"enter resume start 7 {steps[7]} {steps[8]} {ended}"
    assert metrics(run, "train/counted") == {1: 1.0, 7: 7.0, 9: 9.0}
    train(tmp_path / "without", **RARELY)
    assert weights(run / "export") == weights(tmp_path / "without" / "export")


def test_a_run_that_goes_back_takes_a_users_callback_along(tmp_path):
    bad = int(ToyData(seed=3).order.rows(0, 8 * 8, 8 * 8 + 1)[0])  # in step 9
    counter = Counter()
    train(
        tmp_path / "run",
        data=ToyData(seed=3, poisoned=frozenset({bad})),
        callbacks=[counter],
        run__not_finite="reload",
        **RARELY,
    )
    assert counter.steps == 9
    heard = " ".join(counter.heard)
    assert heard.startswith("enter saving saved 0 start 0 before 1")
    assert "flagged 49 resume start 7 before 8" in heard


class Half:
    fingerprint, notes = "half", ()

    def measure(self, model, distributed, **_):
        return Measured(values={"auc": 0.5}, count=1, unit="impressions")


def make_trainer(run_dir, distributed, config) -> Trainer:
    bad = int(ToyData(seed=3).order.rows(0, 8, 9)[0])  # in step 2
    data = ToyData(seed=3, poisoned=frozenset({bad}))
    return Trainer(config, ToyTask(), data, save_export, distributed, Half())


def stateful(kind: type[Callback] = Callback) -> set[type[Callback]]:
    """Callbacks of the package with state in checkpoints."""
    found = {kind} if kind.state is not Callback.state else set()
    return found.union(*map(stateful, kind.__subclasses__()))


def test_the_state_of_every_part_survives_a_checkpoint(tmp_path):
    """Of a run whose parts all have something to tell; one that is not in the list fails."""
    for module in pkgutil.walk_packages(trainer.__path__, "trainer."):
        if module.name.split(".")[1] in {"engine", "monitor", "checkpoint"}:
            importlib.import_module(module.name)
    wanted = {kind for kind in stateful() if kind.__module__.startswith("trainer.")}
    assert len(wanted) >= 3
    changes = {"run__not_finite": "skip", "run__max_steps": 4, "validation__clicks": "half"}
    changes |= {"task": "finetune", "data__clicks": "none"}
    config = from_settings(settings(tmp_path / "run", **changes), where="test")
    with start(config) as distributed:
        make_trainer(tmp_path, distributed, config).fit()
        fresh, resumed = (make_trainer(tmp_path, distributed, config) for _ in range(2))
        checkpoint = resumed.run.store.find()
        resumed.callbacks.resume(checkpoint)
    parts = {type(part): part for part in resumed.callbacks}
    assert wanted <= set(parts)
    for part in fresh.callbacks:
        if type(part) in wanted:
            kept = parts[type(part)].state()
            assert kept and kept != part.state(), f"{part} has nothing to tell"
            assert kept == {name: checkpoint.state[name] for name in kept}


@pytest.mark.parametrize("name", ["data", "not_finite", "step"])
def test_an_entry_that_is_taken_is_refused(tmp_path, name):
    class Greedy(Callback):
        def state(self) -> dict[str, Any]:
            return {name: 1}

    with pytest.raises(ValueError, match=rf"Greedy\.state\(\): {{'{name}'}} are taken"):
        train(tmp_path / "run", callbacks=[Greedy()])


def test_all_hear_of_a_stop_in_reverse_order_even_where_one_fails():
    class Stopped(Callback):
        def __init__(self, name):
            self.name = name

        def on_stop(self, error):
            heard.append(self.name)
            if self.name == "b":
                raise OSError("b fails")

    heard: list[str] = []
    callbacks = Callbacks([Stopped("a"), Stopped("b"), Stopped("c")])
    with pytest.raises(OSError, match="b fails"):
        callbacks.stop(TrainingError("the reason"))
    assert heard == ["c", "b", "a"]
