"""Plots and job scripts are whole or not there, and never take the place of a device."""

import os
from pathlib import Path

import pytest
from helpers.small_disk import small_disk

from launchers.jobs import JobBook
from launchers.slurm import submit
from shards.files import atomic_file
from shards.os_errors import os_error_line
from trainer.evaluate.plot import plot_quality_speed

BIG = "x" * 300_000


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file") as refused, atomic_file(pipe):
        raise AssertionError("it was opened")
    assert str(pipe) in os_error_line(refused.value)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_plot_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with small_disk(tmp_path / "disk") as disk:
        disk.leave(4)
        place = disk.path / "plot.png"
        with pytest.raises(OSError, match="No space left") as refused:
            plot_quality_speed([], str(place))
        assert str(place) in os_error_line(refused.value)
        assert not place.exists() and not list(disk.path.glob(".plot*"))


def test_a_job_script_on_a_full_disk_is_named(tmp_path: Path) -> None:
    class Step:
        name = "train"

    class Job:
        step = Step()
        script = BIG

    with small_disk(tmp_path / "disk") as disk:
        book = JobBook(disk.path)
        (disk.path / "slurm").mkdir()
        disk.leave(4)
        with pytest.raises(OSError, match="No space left") as refused:
            submit([Job()], disk.path, book, {})  # type: ignore[list-item]
        assert "train" in os_error_line(refused.value)
        assert not [path for path in disk.path.rglob("*") if "train" in path.name]
