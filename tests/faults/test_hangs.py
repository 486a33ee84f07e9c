"""A rank that stops answering, and data that never come, in real processes."""

import json
import re
import time
from pathlib import Path

from helpers.launch import launch, settings

from trainer.engine.watchdog import SLACK_S

LIMIT_S = 4.0
START_S = 60.0
"""Start-up, and the launcher's own time for ending its workers, on a busy machine."""


def hang(folder: Path, processes: int, kill: dict) -> tuple[str, str, Path]:
    """Train into a hang; the run ends by itself, in time, and leaves no process."""
    run = folder / "run"
    spec = {"settings": settings(run, run__hang_timeout_s=LIMIT_S), "kill": kill}
    began = time.monotonic()
    done = launch(folder, spec, processes)
    assert time.monotonic() - began < LIMIT_S + SLACK_S + START_S
    assert done.returncode == 1, done.stderr
    assert not left_behind(folder / "spec.json")
    state = json.loads((run / "state.json").read_text())
    assert state["state"] == "stopped"
    assert "hang" in state["reason"]
    stacks = "".join(path.read_text() for path in sorted((run / "log").glob("stacks-rank*.txt")))
    return done.stderr, stacks, run


def left_behind(spec: Path) -> list[str]:
    """Processes whose command line names the spec."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(spec) in words:
            found.append(process.name)
    return found


def test_f2_stopped_rank_ends_the_job_naming_it_with_the_stacks_of_all(tmp_path):
    kill = {"signal": "SIGSTOP", "samples": 8 * 9, "ranks": [1]}
    told, stacks, run = hang(tmp_path, 2, kill)
    for text in (told, stacks):
        assert re.search(r"rank 0 made no progress for [\d.]+ s in step \d+, ", text)
        assert re.search(r"rank 1: step \d+, .*DID NOT ANSWER", text)
        assert "Stacks of rank 0:" in text
        assert "rank 0: step" in text
    assert (run / "log" / "stacks-rank1.txt").stat().st_size > 0


def test_f2_data_that_never_come_end_the_job_with_where_it_waits(tmp_path):
    kill = {"signal": "SLEEP", "samples": 8 * 9, "ranks": [0]}
    told, stacks, _ = hang(tmp_path, 1, kill)
    for text in (told, stacks):
        assert re.search(r"rank 0 made no progress for [\d.]+ s in step \d+, data wait", text)
        assert "time.sleep(10_000)" in text
