"""One record, three places; cut back on resume."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.errors import TrainingError
from trainer.monitor.metrics import MetricsFile, read_metrics
from trainer.monitor.monitor import Monitor, Record, console_line, duration


def write(folder, steps, resumed_step=0, said=None):
    lines = [] if said is None else said
    monitor = Monitor(folder, 100, resumed_step, lines.append)
    for step in steps:
        monitor.write(Record(step=step, values={"train/loss": 1 / step, "speed/memory_mib": 3.0}))
    monitor.flush()
    monitor.close()


def test_a_record_goes_to_all_three_places(tmp_path):
    said = []
    write(tmp_path, [1, 2], said=said)
    assert [r["train/loss"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 0.5]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(e.step, e.value) for e in events] == [(1, 1.0), (2, 0.5)]
    assert len(said) == 2
    assert "loss 0.5" in said[1]


def test_floats_read_back_as_the_same_numbers(tmp_path):
    value = 0.1 + 0.2 + math.pi * 1e-7
    file = MetricsFile(tmp_path, 0)
    file.write({"step": 1, "x": value})
    file.sync()
    file.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["x"] == value


def test_resume_cuts_back_metrics_and_tensorboard(tmp_path):
    write(tmp_path, [1, 2, 3, 4, 5])
    write(tmp_path, [3, 4], resumed_step=2)
    steps = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [e.step for e in events] == [1, 2, 3, 4]


@pytest.mark.parametrize("torn", ['{"step": 3, "tr', "null\n", "\0\0\0\0"])
def test_half_written_last_line_of_a_killed_run_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n" + torn)
    MetricsFile(tmp_path, 10).close()
    assert [r["step"] for r in read_metrics(path)] == [1, 2]
    assert path.read_text().endswith("\n")


def test_console_line_shows_step_time_left_units_and_whatever_the_task_reports():
    values = {
        "train/loss": 1.23456,
        "train/lr": 1e-5,
        "teacher/a/weight": 0.25,
        "speed/samples_per_s": 1234.5,
        "speed/data_wait_pct": 1.5,
        "speed/padding_pct": 25.0,
        "speed/memory_mib": 512.0,
    }
    line = console_line(Record(step=7, values=values), 1000, 3723)
    assert line == (
        "step    7/1000  left 1:02:03  loss 1.235  lr 1e-05  teacher/a/weight 0.25  "
        "samples 1234.5/s  data_wait 1.5%  padding 25.0%  memory 512.0 MiB"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (90000, "25:00:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_disk_that_refuses_is_one_clear_error(tmp_path, monkeypatch):
    def full(self, record):
        raise OSError(28, "No space left on device")

    monitor = Monitor(tmp_path, 10, 0, print)
    monkeypatch.setattr(MetricsFile, "write", full)
    with pytest.raises(TrainingError, match=r"step 1 .*metrics\.jsonl.*No space left"):
        monitor.write(Record(step=1))
    monitor.close()
