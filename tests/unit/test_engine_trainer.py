"""The loop in one process: run folder, resume, stopping, copies, errors."""

import json
import os
import signal
import threading

import pytest
import torch
from filelock import FileLock
from helpers.inprocess import StopAfter, state, train, train_until_crash, weights
from helpers.launch import metrics
from helpers.toy import ToyData, ToyTask

from trainer.errors import CheckpointError, ConfigError, StopForRequeue, TrainingError


def test_run_folder_has_everything_about_the_run(tmp_path):
    assert train(tmp_path / "run", run__max_steps=7) == tmp_path / "run"
    run = tmp_path / "run"
    assert state(run) == {"state": "finished", "step": 7, "steps": 7}
    assert json.loads((run / "config.json").read_text())["run"]["global_batch"] == 8
    begun = json.loads((run / "starts.jsonl").read_text())
    assert begun["from_step"] == 0
    assert (begun["order"]["units"], begun["order"]["window_shards"]) == (150, 4)
    assert begun["order"]["apart_pct"] == pytest.approx(100, rel=0.2)
    log = (run / "log" / "train.log").read_text()
    assert "order: windows of 3 of 3 shards (150 of 150 units); of a uniform shuffle" in log
    assert torch.__version__.startswith(begun["versions"]["torch"])
    assert begun["command"]
    assert (run / "checkpoints" / "latest").read_text() == "step_00000007\n"
    assert list((run / "tensorboard").iterdir())
    assert "step 7/7" in (run / "log" / "train.log").read_text()
    assert sorted(metrics(run)) == list(range(1, 8))
    assert weights(run / "export")
    assert not (run / "deepspeed.json").exists()


def test_it_learns(tmp_path):
    train(tmp_path / "run", run__max_steps=150, run__log_every=10, run__checkpoint_every=1000)
    losses = metrics(tmp_path / "run")
    assert sorted(losses) == [1, *range(10, 151, 10)]
    assert losses[150] < 0.7 * losses[1]


def test_a_crash_and_a_restart_give_the_same_losses_to_the_bit(tmp_path):
    options = {"make_task": lambda: ToyTask(dropout=0.3), "optimizer__amsgrad": True}
    train(tmp_path / "whole", **options)
    train_until_crash(tmp_path / "torn", 13, **options)
    assert state(tmp_path / "torn")["state"] == "stopped"
    assert state(tmp_path / "torn")["step"] == 10
    train(tmp_path / "torn", **options)
    for name in ("train/loss", "train/grad_norm", "train/accuracy"):
        assert metrics(tmp_path / "torn", name) == metrics(tmp_path / "whole", name)
    assert weights(tmp_path / "torn" / "export") == weights(tmp_path / "whole" / "export")


def test_dropout_is_on_and_another_seed_gives_another_run(tmp_path):
    dropped = {"make_task": lambda: ToyTask(dropout=0.3), "run__max_steps": 3}
    train(tmp_path / "a", **dropped)
    train(tmp_path / "b", run__max_steps=3)
    train(tmp_path / "c", run__seed=4, **dropped)
    assert metrics(tmp_path / "a")[1] != metrics(tmp_path / "b")[1]
    assert metrics(tmp_path / "a")[1] != metrics(tmp_path / "c")[1]


def test_global_batch_is_what_counts_not_the_micro_batch(tmp_path):
    for micro in (8, 4, 2, 1):
        train(tmp_path / str(micro), run__micro_batch=micro, optimizer__max_grad_norm=0.3)
    whole = metrics(tmp_path / "8")
    for micro in (4, 2, 1):
        assert metrics(tmp_path / str(micro)) == pytest.approx(whole, rel=1e-5)


def test_clipping_limits_the_step_and_reports_the_norm_before_it(tmp_path):
    train(tmp_path / "free", run__max_steps=2)
    train(tmp_path / "tight", run__max_steps=2, optimizer__max_grad_norm=1e-9)
    norm = "train/grad_norm"
    assert metrics(tmp_path / "tight", norm)[1] == metrics(tmp_path / "free", norm)[1] > 0.1
    # Adam is nearly blind to the gradient's scale, but not where eps is larger than the gradient.
    assert metrics(tmp_path / "tight")[2] != metrics(tmp_path / "free")[2]


def test_batch_that_does_not_divide_shows_the_arithmetic(tmp_path):
    with pytest.raises(ConfigError, match=r"global_batch 8 .* 1 ranks x .*micro_batch 3 = 3"):
        train(tmp_path / "run", run__micro_batch=3)


def test_finished_run_says_so_and_does_nothing(tmp_path, capsys):
    train(tmp_path / "run", run__max_steps=3)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train(tmp_path / "run", run__max_steps=3)
    assert "is finished: 3 steps are done" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_finished_run_is_no_other_run(tmp_path):
    class OtherData(ToyData):
        fingerprint = "something else"

    run = tmp_path / "run"
    train(run, run__max_steps=7)
    copies = {"run__copies__rule": "list", "run__copies__steps": (2,)}
    for newest in ("intact", "damaged"):
        with pytest.raises(CheckpointError, match="on other data"):
            train(run, data=OtherData(seed=3), run__max_steps=7)
        with pytest.raises(ConfigError, match=r"copies of steps \[2\], but the run is past them"):
            train(run, run__max_steps=7, **copies)
        with pytest.raises(ConfigError, match=r"the run has done [57] steps"):
            train(run, run__max_steps=4)
        (run / "checkpoints" / "step_00000007" / "state.json").write_text(newest)
    train(run, run__max_steps=7)
    assert state(run) == {"state": "finished", "step": 7, "steps": 7}


def test_finished_run_is_extended_by_more_steps(tmp_path):
    train(tmp_path / "run", run__max_steps=3)
    train(tmp_path / "run", run__max_steps=6)
    train(tmp_path / "whole", run__max_steps=6)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert state(tmp_path / "run") == {"state": "finished", "step": 6, "steps": 6}


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    train_until_crash(tmp_path / "run", 13)
    with pytest.raises(ConfigError, match="the run has done 10 steps"):
        train(tmp_path / "run", run__max_steps=7)


@pytest.mark.parametrize(
    ("field", "value"),
    [("run__seed", 9), ("run__global_batch", 16), ("optimizer__lr", 0.5), ("task", "finetune")],
)
def test_another_run_in_the_folder_is_refused_naming_the_field(tmp_path, field, value):
    train_until_crash(tmp_path / "run", 6)
    with pytest.raises(CheckpointError, match=field.replace("__", r"\.")):
        train(tmp_path / "run", **{field: value})


def test_other_data_are_refused(tmp_path):
    train_until_crash(tmp_path / "run", 6)

    class OtherData(ToyData):
        fingerprint = "something else"

    with pytest.raises(CheckpointError, match="on other data"):
        train(tmp_path / "run", data=OtherData(seed=3))


def test_signal_makes_a_checkpoint_and_asks_to_be_requeued(tmp_path):
    train(tmp_path / "whole")

    class Signalling(ToyData):
        def collate(self, batch_rows):
            if batch_rows.position.samples == 8 * 7:
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().collate(batch_rows)

    with pytest.raises(StopForRequeue, match="SIGUSR1") as stopped:
        train(tmp_path / "run", data=Signalling(seed=3), run__checkpoint_every=1000)
    assert stopped.value.exit_code == 75
    reached = state(tmp_path / "run")
    assert reached["state"] == "stopped"
    assert 4 <= reached["step"] <= 7  # the data are fetched up to three steps ahead
    train(tmp_path / "run", run__checkpoint_every=1000)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_loss_that_is_not_finite_stops_and_is_not_saved(tmp_path):
    bad_row = int(ToyData(seed=3).order.rows(0, 8 * 6, 8 * 6 + 1)[0])
    poisoned = ToyData(seed=3, poisoned=frozenset({bad_row}))
    with pytest.raises(TrainingError, match="loss is not finite in step 7 on rank 0"):
        train(tmp_path / "run", data=poisoned, run__checkpoint_every=1)
    assert state(tmp_path / "run")["step"] == 6
    assert "not finite" in state(tmp_path / "run")["reason"]


def test_gradient_that_is_not_finite_stops_and_is_not_saved(tmp_path):
    class Infinite(ToyTask):
        def forward(self, batch):
            outputs = super().forward(batch)
            weight = self.projection.weight
            # sqrt at 0 has an infinite slope: the loss is finite, its gradient is not.
            outputs["loss"] = outputs["loss"] + torch.sqrt((weight - weight.detach()).sum())
            return outputs

    with pytest.raises(TrainingError, match="gradient is not finite in step 1"):
        train(tmp_path / "run", make_task=Infinite)
    assert state(tmp_path / "run")["step"] == 0


def test_parameter_that_takes_no_part_stops_before_the_first_step(tmp_path):
    def with_unused():
        task = ToyTask()
        task.unused = torch.nn.Parameter(torch.zeros(2))
        task.parameter_groups = lambda config: [
            {"params": [p for p in task.parameters() if p.requires_grad]}
        ]
        return task

    with pytest.raises(TrainingError, match="unused"):
        train(tmp_path / "run", make_task=with_unused)


def test_every_step_is_taken_at_its_own_rate(tmp_path):
    """A rate of 0.01, warmed up over two steps, then falling."""
    schedule = {"optimizer__schedule": "linear", "optimizer__warmup_steps": 2}
    train(tmp_path / "run", run__max_steps=4, **schedule)
    expected = {1: 0.005, 2: 0.01, 3: 0.01, 4: 0.005}
    assert metrics(tmp_path / "run", "train/lr") == pytest.approx(expected)


def test_copies_are_published_at_their_steps(tmp_path):
    copies = {"run__copies__rule": "first_m", "run__copies__every": 3, "run__copies__count": 2}
    train(tmp_path / "run", run__max_steps=8, **copies)
    folder = tmp_path / "run" / "copies"
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000003", "step_00000006"]
    third, sixth = (weights(folder / f"step_0000000{n}") for n in (3, 6))
    assert third["user.pad_doc"] != sixth["user.pad_doc"]
    info = json.loads((folder / "step_00000006" / "export.json").read_text())["info"]
    assert (info["step"], info["steps"], info["task"]) == (6, 8, "post_train")


def test_copies_wanted_of_steps_already_passed_are_refused(tmp_path):
    train_until_crash(tmp_path / "run", 13)
    with pytest.raises(ConfigError, match=r"copies of steps \[4, 8\]"):
        train(tmp_path / "run", run__copies__rule="first_m", run__copies__every=4)


def test_second_process_in_the_folder_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(TrainingError, match="another process is training"),
    ):
        train(tmp_path / "run")


def test_error_in_the_data_thread_reaches_the_caller_and_no_thread_stays(tmp_path):
    with pytest.raises(TrainingError, match="crash of the test"):
        train(tmp_path / "run", data=StopAfter(8, seed=3))
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_failing_export_is_an_error_and_the_rerun_only_exports(tmp_path):
    def broken(model, folder, info):
        raise CheckpointError("disk of the test is full")

    with pytest.raises(CheckpointError, match="disk of the test"):
        train(tmp_path / "run", export=broken, run__max_steps=4)
    assert state(tmp_path / "run")["state"] == "stopped"
    train(tmp_path / "run", run__max_steps=4)
    assert state(tmp_path / "run")["state"] == "finished"
    assert sorted(metrics(tmp_path / "run")) == [1, 2, 3, 4]


def test_bf16_trains_close_to_fp32(tmp_path):
    train(tmp_path / "fp32", run__max_steps=30)
    train(tmp_path / "bf16", run__max_steps=30, run__precision="bf16")
    exact, rough = metrics(tmp_path / "fp32"), metrics(tmp_path / "bf16")
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)


def test_workers_do_not_change_a_run_and_leave_no_thread(tmp_path):
    for workers in (0, 1, 3):
        train(tmp_path / str(workers), run__max_steps=6, data__workers=workers)
        assert not [t for t in threading.enumerate() if t.name == "prefetch"]
    one = metrics(tmp_path / "1")
    assert metrics(tmp_path / "0") == one
    assert metrics(tmp_path / "3") == one
