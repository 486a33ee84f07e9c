"""Traces of chosen steps: one a run of neighbours, readable, with a table."""

import gzip
import json

import torch

from trainer.engine.profiling import StepProfiler
from trainer.engine.step import Step


def test_chosen_steps_leave_a_trace_and_a_table_of_operators(tmp_path):
    said = []
    with StepProfiler((2, 3, 99), tmp_path, 1, said.append) as profiler:
        for number in range(1, 6):
            profiler.before_step(Step(number))
            torch.ones(8, 8) @ torch.ones(8, 8)
    (line,) = said
    assert line.startswith("profile of steps 2 to 3: ")
    with gzip.open(tmp_path / "profile" / "rank1.2.pt.trace.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::matmul") == 2
    assert "aten::mm" in (tmp_path / "log" / "profile-step2-rank1.txt").read_text()
    assert len(list((tmp_path / "profile").iterdir())) == 1
