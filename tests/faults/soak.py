"""A soak: one small run of two processes, killed again and again, ends with the same weights.

Run from the root of the repository::

    python tests/faults/soak.py --kills 50 --seed 7

A run that is never killed goes first. Then the same run is started, killed with SIGKILL at a random
moment (one rank or all; while it starts, trains or saves) and started again, as often as asked, and
at last left to finish. Its losses and weights must be those of the first, bit for bit. Every kill
is a line: when, whom, at which step, what was being done, and where the run went on. The seed is
printed: the choices follow from it, the exact moments from the machine as well.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from helpers.launch import SCRIPT, metrics, settings
from helpers.process import one_thread

from launchers.ranks import children

STEPS_A_KILL = 16
"""A kill waits for at most so many new steps, so the run outlasts all of them."""
TIMEOUT_S = 240
CHECKPOINT_EVERY = 4
MOMENTS = ("starting", "training", "training", "saving", "saving", "saving")


@dataclass
class Kill:
    """One kill.

    Attributes:
        whom: ``all``, ``rank 0`` or ``rank 1``.
        moment: What it waited for.
        at_s: Seconds after the start of the processes.
        step: The last step that had been logged; 0 before the first.
        doing: What the files show was being done.
        ended_s: Seconds until all processes were gone.
        starts: Starts that the run had recorded by then.
        went_on: Step from which the next recorded start went on.
    """

    whom: str
    moment: str
    at_s: float
    step: int
    doing: str
    ended_s: float
    starts: int
    went_on: int = -1


class Soak:
    """The run and its killer.

    Args:
        folder: Where both runs go.
        kills: How often.
        seed: Of the choices.
        deepspeed: A DeepSpeed file's name; None for DDP.
    """

    def __init__(self, folder: Path, kills: int, seed: int, deepspeed: str | None) -> None:
        self._folder = folder
        self._kills = kills
        self._random = random.Random(seed)
        self._deepspeed = deepspeed
        self.steps = STEPS_A_KILL * kills + 20

    def run(self) -> list[Kill]:
        """Run both and compare them; raises AssertionError where they differ."""
        self._finish("whole")
        kills = []
        for number in range(1, self._kills + 1):
            kill = self._kill()
            kills.append(kill)
            print(
                f"kill {number:>3}: {kill.whom:<6} after {kill.at_s:5.1f} s, step {kill.step:>4}, "
                f"{kill.doing}; all gone after {kill.ended_s:.1f} s",
                flush=True,
            )
        self._finish("killed")
        for kill in kills:
            kill.went_on = self._starts()[kill.starts]["from_step"]
        compare(self._folder / "killed", self._folder / "whole", self.steps)
        return kills

    def _start(self, name: str) -> "subprocess.Popen[bytes]":
        changes: dict[str, Any] = {
            "run__max_steps": self.steps,
            "run__micro_batch": 2,
            "run__epochs": 10_000.0,
            "run__checkpoint_every": CHECKPOINT_EVERY,
            "run__deepspeed": self._deepspeed,
            "optimizer__schedule": "cosine",
        }
        spec = {
            "settings": settings(self._folder / name, **changes),
            "dropout": 0.3,
            "pause_s": 0.01,
            "ballast": 4_000_000,
        }
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps(spec))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *launcher, str(SCRIPT), str(path)],
                env=one_thread(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _finish(self, name: str) -> None:
        running = self._start(name)
        try:
            code = running.wait(TIMEOUT_S + 2 * self.steps)
        finally:
            _kill_session(running)
        assert code == 0, f"exit code {code}; see {self._folder / name}.log"

    def _kill(self) -> Kill:
        """Start, wait for a random moment, kill, and see that nobody stays."""
        moment = self._random.choice(MOMENTS)
        whom = self._random.choice(("all", "rank 0", "rank 1"))
        new_steps = self._random.randint(1, STEPS_A_KILL - CHECKPOINT_EVERY)
        wait_s = self._random.uniform(0, 6 if moment == "starting" else 0.03)
        begun, before = time.monotonic(), self._hidden()
        recorded = len(self._starts())
        running = self._start("killed")
        try:
            if moment == "starting":
                end = begun + wait_s
                _wait(running, lambda: time.monotonic() > end or len(self._starts()) > recorded)
            else:
                _wait(running, lambda: len(self._starts()) > recorded)
                first = self._starts()[-1]["from_step"]
                _wait(running, lambda: self._step() >= first + new_steps)
                if moment == "saving":
                    _wait(running, lambda: bool(self._hidden().keys() - before.keys()))
                time.sleep(wait_s)
            at = time.monotonic()
            if whom == "all":
                _kill_session(running)
            else:
                _kill_rank(running, int(whom[-1]))
            running.wait(TIMEOUT_S)
            ended = time.monotonic()
        finally:
            _kill_session(running)
        left = {n: text for n, text in self._hidden().items() if n not in before}
        doing = ", ".join(left.values()) or ("training" if moment != "starting" else "starting")
        step, starts = self._step(), len(self._starts())
        return Kill(whom, moment, at - begun, step, doing, ended - at, starts)

    def _starts(self) -> list[dict[str, Any]]:
        path = self._folder / "killed" / "starts.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _step(self) -> int:
        """The last step in ``metrics.jsonl``."""
        path = self._folder / "killed" / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return int(json.loads(whole[-1])["step"]) if whole else 0

    def _hidden(self) -> dict[str, str]:
        """Checkpoints being written or deleted, by their hidden names, in words."""
        found = {}
        folder = self._folder / "killed" / "checkpoints"
        for entry in folder.iterdir() if folder.exists() else ():
            if entry.name.startswith(".step_"):
                files = sorted(path.name.partition(".")[0] for path in entry.iterdir())
                step = int(entry.name.partition(".tmp")[0][len(".step_") :])
                found[entry.name] = f"saving step {step} ({' '.join(files) or 'empty'})"
            elif entry.name.startswith(".deleting-"):
                found[entry.name] = f"deleting {entry.name[len('.deleting-') :][:13]}"
        return found


def compare(run: Path, whole: Path, steps: int) -> None:
    """Raise AssertionError unless two runs have the same losses and final weights, bit for bit."""
    assert sorted(metrics(whole)) == list(range(1, steps + 1))
    for name in ("train/loss", "train/grad_norm"):
        assert metrics(run, name) == metrics(whole, name), f"{name} differs"
    ours, theirs = (json.loads((r / "export" / "export.json").read_text()) for r in (run, whole))
    ours["weights"].pop("ballast", None)
    theirs["weights"].pop("ballast", None)
    assert ours["weights"] == theirs["weights"], "weights differ"


def summary(kills: list[Kill], steps: int) -> str:
    """The kills in a few lines."""
    doing = Counter(kill.doing.partition(" ")[0] for kill in kills)
    lost = [max(0, kill.step - kill.went_on) for kill in kills]
    return (
        f"{len(kills)} kills in {steps} steps: "
        + ", ".join(f"{count} while {what}" for what, count in sorted(doing.items()))
        + f"; steps lost to a kill: {min(lost)} to {max(lost)}, {sum(lost)} in all; all processes "
        f"gone within {max(kill.ended_s for kill in kills):.1f} s\n"
        "losses, gradient norms and weights are those of the run that was never killed, bit for bit"
    )


def _wait(running: "subprocess.Popen[bytes]", is_so: Callable[[], bool]) -> None:
    """Wait until something is so, or the processes end by themselves, which is an error."""
    end = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert running.poll() is None, f"the run ended by itself with {running.returncode}"
        assert time.monotonic() < end, "the run does nothing"
        time.sleep(0.001)


def _kill_rank(running: "subprocess.Popen[bytes]", rank: int) -> None:
    """SIGKILL one rank; all of them while there is no such rank yet."""
    for pid in children(running.pid):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables:
                os.kill(pid, signal.SIGKILL)
                return
        except (OSError, ProcessLookupError):
            continue
    _kill_session(running)


def _kill_session(running: "subprocess.Popen[bytes]") -> None:
    """SIGKILL torchrun and its ranks; torchrun gives each rank a session of its own."""
    if running.poll() is None:
        for pid in [running.pid, *children(running.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        running.wait()


def main() -> None:
    """Soak as asked and print the log."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--deepspeed", default=None, help="a DeepSpeed file's name; DDP without")
    options = parser.parse_args()
    # As an exception, so that being stopped ends the run's processes too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.kills, seed, options.deepspeed)
        kills = soak.run()
    for number, kill in enumerate(kills, start=1):
        print(f"kill {number:>3}: step {kill.step:>4} -> went on from step {kill.went_on}")
    print(summary(kills, soak.steps))


if __name__ == "__main__":
    main()
