"""Plant faults one by one, run the tests that belong to each, and report which survive.

Run by hand from the root of the checkout::

    python tests/mutation/run.py --jobs 2
    python tests/mutation/run.py --only shards/order.py

Nothing is written into the checkout: every job has a copy of its tracked and new files under
the temporary folder. The tests of a fault run in a process forked from this one, which has torch
and its fellows imported already. Verdicts go to a JSON file as they come; a run that was stopped
goes on where it was, and a verdict counts as long as the module, the fault and the tests are what
they were. The tests of every fault must also pass without it.

Exit code: 0 when at least ``--least`` percent were killed, 1 otherwise, 2 for a stale list or tests
that fail without faults.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from planting import ROOT, Fault, StaleList, load_faults

KILLED, SURVIVED, BROKEN, PASSED = "killed", "survived", "broken", "passed"
WARM = ("numpy", "torch", "safetensors.torch", "transformers", "accelerate", "hypothesis", "yaml")
_POLL_S = 0.05


@dataclass
class Task:
    """Tests to run in a copy, with a fault or without."""

    key: str
    words: tuple[str, ...]
    fault: Fault | None
    digest: str
    limit_s: float


@dataclass
class Running:
    """A forked child."""

    task: Task
    pid: int
    copy: Path
    log: Path
    begun: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the faults that have no verdict yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose name holds this text")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    parser.add_argument("--limit-s", type=float, default=240.0, help="time limit of a fault")
    parser.add_argument("--results", type=Path, default=Path("mutation-results.json"))
    parser.add_argument("--least", type=float, default=97.0, help="percent that must be killed")
    parser.add_argument("--stop-after-s", type=float, default=float("inf"), help="start no more")
    parser.add_argument("--cold", action="store_true", help="import nothing beforehand")
    parser.add_argument("--again", action="store_true", help="forget the survivors' verdicts")
    words = parser.parse_args(argv)
    try:
        faults = load_faults(words.only)
        for fault in faults:
            fault.planted(ROOT)
    except StaleList as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    verdicts = json.loads(words.results.read_text()) if words.results.exists() else {}
    if words.again:
        verdicts = {k: v for k, v in verdicts.items() if v["verdict"] in (KILLED, PASSED)}
    _prepare_environment(() if words.cold else WARM)
    deadline = time.monotonic() + words.stop_after_s
    with tempfile.TemporaryDirectory(prefix="tnr-mutation-") as scratch:
        bench = Bench(Path(scratch), words.jobs, words.results, verdicts, deadline)
        tasks = []
        for tests in sorted({fault.tests for fault in faults}):
            belonging = [fault for fault in faults if fault.tests == tests]
            tasks += [_task(tests, fault, words.limit_s) for fault in (None, *belonging)]
        bench.run(tasks)
    return _report(faults, verdicts, words.least)


def _prepare_environment(modules: Sequence[str]) -> None:
    """Import what takes long once, for all children."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in modules:
        __import__(name)
    import pytest  # noqa: F401


def _plain_key(words: Sequence[str]) -> str:
    return f"without faults: {' '.join(words)}"


def _task(words: tuple[str, ...], fault: Fault | None, limit_s: float) -> Task:
    digest = hashlib.sha256(" ".join(words).encode())
    files = [ROOT / word.partition("::")[0] for word in words if word.startswith("tests/")]
    for file in files:
        digest.update(file.read_bytes())
    if fault is not None:
        digest.update(fault.planted(ROOT).encode())
    return Task(
        fault.name if fault else _plain_key(words), words, fault, digest.hexdigest(), limit_s
    )


class Bench:
    """Copies of the checkout, and the children that run in them."""

    def __init__(
        self, scratch: Path, jobs: int, results: Path, verdicts: dict, deadline: float
    ) -> None:
        self._scratch, self._results, self._verdicts = scratch, results, verdicts
        self._deadline = deadline
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        self._free = [scratch / f"copy-{number}" for number in range(jobs)]
        for copy in self._free:
            for name in filter(None, listed):
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)

    def run(self, tasks: list[Task]) -> None:
        """Run tasks without a valid verdict, so many at a time as there are copies."""
        todo = [t for t in tasks if self._verdicts.get(t.key, {}).get("digest") != t.digest]
        running: list[Running] = []
        count = 0
        try:
            while running or todo:
                while todo and self._free and time.monotonic() < self._deadline:
                    running.append(self._start(todo.pop(0), self._free.pop()))
                if not running:
                    print(f"stopped with {len(todo)} left; the same command goes on")
                    raise SystemExit(1)
                for child in list(running):
                    code = self._ended(child)
                    if code is None:
                        continue
                    running.remove(child)
                    self._free.append(child.copy)
                    count += 1
                    self._note(child, code, f"{count}, {len(todo) + len(running)} left")
                time.sleep(_POLL_S)
        finally:
            for child in running:
                _kill(child.pid)

    def _start(self, task: Task, copy: Path) -> Running:
        if task.fault is not None:
            _write(copy / task.fault.module, task.fault.planted(ROOT))
        log = copy.with_suffix(".log")
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _child(task.words, copy, log)
        return Running(task, pid, copy, log, time.monotonic())

    def _ended(self, child: Running) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            _kill(child.pid)  # what it left behind
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - child.begun > child.task.limit_s:
            _kill(child.pid)
            os.waitpid(child.pid, 0)
            return -signal.SIGKILL
        return None

    def _note(self, child: Running, code: int, place: str) -> None:
        task, seconds = child.task, time.monotonic() - child.begun
        if task.fault is not None:
            shutil.copy2(ROOT / task.fault.module, child.copy / task.fault.module)
            _forget_bytecode(child.copy / task.fault.module)
        # pytest: 1 is a failed test; 2 and more is a broken import, a wrong word, no test at all.
        if task.fault is None:
            verdict = PASSED if code == 0 else BROKEN
        else:
            verdict = SURVIVED if code == 0 else KILLED if code == 1 or code < 0 else BROKEN
        lines = child.log.read_text(errors="replace").splitlines()
        said = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
        entry = {"verdict": verdict, "code": code, "seconds": round(seconds, 1), "by": said}
        self._verdicts[task.key] = entry | {"digest": task.digest}
        self._results.write_text(json.dumps(self._verdicts, indent=1, ensure_ascii=False))
        print(f"[{place}] {verdict:8} {seconds:5.1f} s  {task.key}", flush=True)
        if verdict == BROKEN:
            print("\n".join(lines[-30:]), flush=True)


def _child(words: tuple[str, ...], copy: Path, log: Path) -> None:
    """Run pytest in a copy and end the process; called after a fork."""
    code = 3
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(out, number)
        os.chdir(copy)
        temporary = copy.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        os.environ |= {"PYTHONPATH": str(copy), "TMPDIR": str(temporary)}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False  # what does not change is compiled once
        tempfile.tempdir = str(temporary)
        kept = [p for p in sys.path if not Path(p or ".").resolve().is_relative_to(ROOT)]
        sys.path[:] = [str(copy), *kept]
        # Processes that tests spawn import the main module again: not this script.
        sys.modules["__main__"] = ModuleType("__main__")
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={temporary / 'pytest'}"]
        code = int(pytest.main([*options, *words]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _forget_bytecode(path)


def _forget_bytecode(path: Path) -> None:
    for file in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        file.unlink()


def _kill(session: int) -> None:
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return


def _report(faults: list[Fault], verdicts: dict, least: float) -> int:
    plain = {_plain_key(fault.tests) for fault in faults}
    failing = sorted(key for key in plain if verdicts[key]["verdict"] != PASSED)
    if failing:
        print(f"error: these tests fail without any fault: {failing}", file=sys.stderr)
        return 2
    by: dict[str, list[str]] = {KILLED: [], SURVIVED: [], BROKEN: []}
    for fault in faults:
        by[verdicts[fault.name]["verdict"]].append(fault.name)
    for name in by[SURVIVED]:
        print(f"survived: {name}")
    for name in by[BROKEN]:
        print(f"broken, which says nothing: {name}")
    percent = 100.0 * len(by[KILLED]) / max(1, len(faults))
    print(f"{len(by[KILLED])} of {len(faults)} faults were killed ({percent:.1f}%)")
    return 0 if percent >= least and not by[BROKEN] else 1


if __name__ == "__main__":
    sys.exit(main())
