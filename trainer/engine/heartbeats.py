"""Heartbeats of all ranks in the rendezvous store, to find ranks that are silent."""

import contextlib
import itertools
import json
import os
import signal
import socket
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

CONNECT_S = 30.0
"""Seconds within which the store must answer."""

DUMP_SIGNAL = int(signal.SIGRTMAX) - 1 if hasattr(signal, "SIGRTMAX") else 0
"""Signal that makes a rank write its stacks and continue, even a rank that holds the interpreter's
lock; 0 on a system without a spare signal."""

_runs = itertools.count()


@dataclass(frozen=True)
class Beat:
    """One heartbeat of a rank."""

    number: int
    """Counter; if it stands still, so does the process."""
    step: int
    """Current step of the rank."""
    phase: str
    """Current phase of the rank."""
    since_s: float
    """Seconds since the phase began."""
    host: str
    pid: int
    born: str
    """Start time of the process as the kernel states it, because process ids are reused."""


class Heartbeats:
    """A separate connection to the store, so that the training thread never waits for the store.

    Raises:
        RuntimeError: Raised by torch, from any method, if the store does not answer.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        from torch.distributed import PrefixStore, TCPStore

        self._rank, self._world_size = rank, world_size
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=CONNECT_S),
            wait_for_workers=False,
        )
        # torchrun keeps one store for all its restarts.
        words = [os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")]
        self._store: Any = PrefixStore("/".join(["tnr", *words, str(next(_runs))]), store)
        self._number = 0
        self._whoami = (socket.gethostname(), os.getpid(), process_born(os.getpid()))

    def beat(self, step: int, phase: str, since_s: float) -> None:
        """Publish this rank's step and phase."""
        self._number += 1
        beat = Beat(self._number, step, phase, round(since_s, 1), *self._whoami)
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))

    def read(self) -> list[Beat | None]:
        """Return the last beat of every rank; None if there is none yet."""
        beats: list[Beat | None] = []
        for rank in range(self._world_size):
            key = f"beat/{rank}"
            has_said = self._store.check([key])
            beats.append(Beat(**json.loads(self._store.get(key))) if has_said else None)
        return beats

    def raise_alarm(self, reason: str) -> None:
        """Tell all ranks to write their stacks and end."""
        self._store.set("alarm", reason)

    def alarm(self) -> str | None:
        """Return the reason of an alarm that a rank raised."""
        if not self._store.check(["alarm"]):
            return None
        return str(self._store.get("alarm").decode())


def process_born(pid: int) -> str:
    """Return the start time of a process on this machine; empty if unknown."""
    return "".join(_stat(pid)[19:20])


def process_state(beat: Beat) -> str | None:
    """Return the kernel's state of a rank's process (``T (stopped)``); None on another machine."""
    if beat.host != socket.gethostname() or not beat.born:
        return None
    if process_born(beat.pid) != beat.born:
        return "gone"
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{beat.pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.removeprefix("State:").strip()
    return None


def wake(beat: Beat) -> None:
    """Continue a silent rank of this machine, and make it write its stacks."""
    if process_state(beat) in (None, "gone"):
        return
    for number in filter(None, (signal.SIGCONT, DUMP_SIGNAL)):
        with contextlib.suppress(OSError):
            os.kill(beat.pid, number)


def describe(
    before: list[Beat | None], after: list[Beat | None], phases: tuple[str, ...]
) -> list[str]:
    """Describe where every rank is and which ranks did not answer, from two readings.

    Args:
        before: The earlier reading.
        after: The later reading, at least one beat later.
        phases: Phases of a step in order.

    Returns:
        One line per rank; silent ranks and ranks that are behind are marked.
    """
    known = [beat for beat in after if beat is not None]
    places = [_place(beat, phases) for beat in known]
    lines = []
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        if new is None:
            lines.append(f"rank {rank}: DID NOT ANSWER: has never sent a heartbeat")
            continue
        line = f"rank {rank}: step {new.step}, {new.phase}, for {new.since_s:.1f} s then"
        if old is not None and old.number == new.number:
            state = process_state(new)
            told = (
                f"its process is in state {state}"
                if state
                else ("its process is on another machine")
            )
            line += f"; DID NOT ANSWER: {told}"
        elif _place(new, phases) < max(places):
            line += "; BEHIND the others"
        lines.append(f"{line} (process {new.pid} on {new.host})")
    return lines


def silent(before: list[Beat | None], after: list[Beat | None]) -> list[Beat]:
    """Return the last beats of the ranks that were silent between two readings."""
    pairs = zip(before, after, strict=True)
    return [new for old, new in pairs if old and new and old.number == new.number]


def _place(beat: Beat, phases: tuple[str, ...]) -> tuple[int, int]:
    return beat.step, phases.index(beat.phase) if beat.phase in phases else len(phases)


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
