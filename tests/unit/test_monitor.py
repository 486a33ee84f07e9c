"""One record, three places; cut back on resume."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from trainer.errors import TrainingError
from trainer.monitor.board import bars
from trainer.monitor.console import Pace, console_line, duration
from trainer.monitor.metrics import MetricsFile, read_metrics
from trainer.monitor.monitor import Monitor, Record


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


def test_resume_cuts_back_metrics_and_tensorboard(tmp_path, monkeypatch):
    # Both files are of one second and one process, and are read in the order of their names: a
    # count that goes from 9 to 10 between the two would turn it round.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
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


def test_console_line_is_short_and_has_step_time_left_and_units():
    values = {
        "train/loss": 1.23456,
        "train/lr": 1e-5,
        "teacher/a/weight": 0.25,
        "speed/samples_per_s": 1234.5,
        "speed/data_wait_pct": 1.5,
        "speed/padding_pct": 25.0,
        "speed/memory_mib": 512.0,
    }
    line = console_line(7, values, 1000, 3723)
    assert line == (
        "step    7/1000  left 1:02:03  loss 1.235  lr 1e-05  "
        "samples 1234.5/s  padding 25.0%  data_wait 1.5%  memory 512 MiB"
    )


def test_time_left_is_from_recent_steps_and_not_from_the_slow_start():
    pace = Pace(100)
    assert pace.seconds_left(1, now=0.0) is None
    assert pace.seconds_left(10, now=900.0) == pytest.approx(100 * 90)
    for step in range(11, 51):
        left = pace.seconds_left(step, now=900.0 + 2 * (step - 10))
    assert left == pytest.approx(2 * 50)


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


def test_hparams_are_in_the_same_event_file_with_no_run_of_their_own(tmp_path):
    settings = {"optimizer.lr": 0.1, "run.dir": "somewhere", "run.deepspeed": None}
    settings |= {"data.clicks": "somewhere", "data.clicks_until": "2019-11-14"}
    monitor = Monitor(tmp_path, 10, 0, lambda line: None, settings, ["valid/best_auc"])
    monitor.write(Record(step=1, values={"train/loss": 2.0}))
    monitor.end()
    monitor.close()
    assert len(list((tmp_path / "tensorboard").rglob("*"))) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.PluginTagToContent("hparams")
    assert set(tags) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    start = HParamsPluginData.FromString(tags["_hparams_/session_start_info"])
    shown = start.session_start_info.hparams
    assert shown["optimizer.lr"].number_value == 0.1
    assert shown["run.deepspeed"].string_value == "none"
    assert "run.dir" not in shown and "data.clicks" not in shown
    assert shown["data.clicks_until"].string_value == "2019-11-14"
    experiment = HParamsPluginData.FromString(tags["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["valid/best_auc", "train/loss"]


def test_histogram_has_the_counts_and_sums_of_its_bars(tmp_path):
    values = np.random.default_rng(0).random(1000)
    counts, edges = np.histogram(values, 40, (0, 1))
    middles = (edges[1:] + edges[:-1]) / 2
    found = bars([float(count) for count in counts])
    assert found["num"] == 1000
    assert found["sum"] == pytest.approx(counts @ middles)
    assert found["sum_squares"] == pytest.approx(counts @ middles**2)
    assert found["bucket_limits"] == pytest.approx(edges[1:])
    monitor = Monitor(tmp_path, 10, 0, lambda line: None)
    histograms = {"teacher/a/weight": [float(count) for count in counts]}
    monitor.write(Record(step=3, values={"teacher/a/weight": 0.5}, histograms=histograms))
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = events.Histograms("teacher/a/weights")
    assert event.step == 3
    assert event.histogram_value.num == 1000
    assert sum(event.histogram_value.bucket) == 1000


def test_f6_event_file_of_a_killed_run_is_readable_and_resume_leaves_no_step_twice(tmp_path):
    monitor = Monitor(tmp_path, 10, 0, lambda line: None)
    for step in (1, 2, 3, 4):
        monitor.write(Record(step=step, values={"train/loss": float(step)}))
    monitor.flush()
    # What a kill leaves: a last record of which only the beginning reached the disk.
    (path,) = (tmp_path / "tensorboard").iterdir()
    whole = path.read_bytes()
    monitor.close()
    path.write_bytes(whole[:-7])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [e.step for e in events] == [1, 2, 3]
    write(tmp_path, [3, 4, 5], resumed_step=2)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(e.step, e.value) for e in events] == [
        (1, 1.0),
        (2, 2.0),
        *((step, pytest.approx(1 / step)) for step in (3, 4, 5)),
    ]


def test_a_resumed_run_tells_its_time_left_from_its_first_record(tmp_path: Path):
    """However short the rest is: by the pace that it had before."""
    said: list[str] = []
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 4, "speed/step_s": 30.0}\n{"step": 6, "speed/step_s": 60.0}\n'
    )
    monitor = Monitor(tmp_path, steps=8, resumed_step=5, say=said.append)
    monitor.write(Record(step=6, values={"train/loss": 1.0}))
    monitor.close()
    assert "left 0:01:00" in said[0]  # two steps of 30 s; the record after the checkpoint is gone
