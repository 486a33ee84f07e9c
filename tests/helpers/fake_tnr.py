"""Stands in for the command line in tests of the launchers: words say what to do.

``write F TEXT`` appends to a file, ``print TEXT``, ``fail CODE``, ``crash``, ``rank F`` writes
which rank this is, ``wait F`` creates a file and then waits for a signal: on TERM or USR2 it
"checkpoints" into ``F.checkpoint`` and exits with 75. ``stay F`` creates a file and stays: each
TERM is noted in ``F.told``. ``train`` before any of them changes nothing.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words say."""
    verb, *rest = sys.argv[1:] if words is None else words
    if verb == "train":
        verb, *rest = rest
    if verb == "write":
        with Path(rest[0]).open("a", encoding="utf-8") as file:
            file.write(" ".join(rest[1:]) + "\n")
    elif verb == "print":
        print(*rest)
        print("and on standard error", file=sys.stderr)
    elif verb == "fail":
        print("it went wrong here")
        return int(rest[0])
    elif verb == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "rank":
        rank = f"{os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
        Path(f"{rest[0]}.{os.environ['RANK']}").write_text(rank)
    elif verb == "stay":
        stay(Path(rest[0]))
    elif verb == "wait":
        return wait(Path(f"{rest[0]}{os.environ.get('RANK', '')}"))
    return 0


def wait(flag: Path) -> int:
    """Say that it runs, then stop for a signal, as training does."""
    got: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda n, _: got.append(n))
    flag.write_text(str(os.getpid()))
    end = time.monotonic() + 60
    while not got and time.monotonic() < end:
        time.sleep(0.02)
    flag.with_name(flag.name + ".checkpoint").write_text(signal.Signals(got[0]).name)
    return 75


def stay(flag: Path) -> None:
    """Stop for no signal, for half a minute."""
    told = flag.with_name(flag.name + ".told")
    signal.signal(signal.SIGTERM, lambda *_: told.write_text("TERM"))
    flag.write_text(str(os.getpid()))
    end = time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
