"""A real Slurm on this machine: munged, slurmctld and two slurmd in a temporary folder."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("node0", "node1")
DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")

# A requeued job waits until its credentials have expired: 10 s here in place of 120.
_CONF = """\
ClusterName=tnr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
SlurmctldTimeout=60
SlurmdTimeout=15
UnkillableStepTimeout=60
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=node[0-1] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmError(Exception):
    """A Slurm could not be started, or did not do in time what a test waits for."""


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that this machine lacks."""
    return [name for name in (*DAEMONS, *COMMANDS) if _find(name) is None]


class SlurmCluster:
    """Two nodes on loopback; :meth:`start` before use, :meth:`stop` whatever happened."""

    def __init__(self, folder: Path) -> None:
        """Keep everything in ``folder``, whose path must be short (a Unix socket lies in it)."""
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The caller's environment with this cluster's configuration."""
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle.

        Raises:
            SlurmError: They did not come up; says what their logs said.
        """
        self.folder.chmod(0o755)
        munge = self.folder / "munge"
        # munged refuses a key that others may read, and folders that others may write.
        for path, mode in ((munge, 0o755), (self.folder / "state", 0o700)):
            path.mkdir()
            path.chmod(mode)
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir(mode=0o755)
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        first, last = _free_neighbours()
        text = _CONF.format(
            host=socket.gethostname().split(".")[0],
            user=getpass.getuser(),
            folder=self.folder,
            controller=_free_port(),
            first=first,
            last=last,
        )
        self.conf.write_text(text)
        files = {"key-file": key, "socket": munge / "socket", "pid-file": munge / "pid"}
        files |= {"log-file": munge / "log", "seed-file": munge / "seed"}
        options = [f"--{name}={path}" for name, path in files.items()]
        self._spawn("munged", ["munged", "--foreground", "--force", *options])
        self.wait_until(lambda: (munge / "socket").exists(), 20, "munged opened its socket")
        self._spawn("slurmctld", ["slurmctld", "-D", "-c", "-f", str(self.conf)])
        for node in NODES:
            self.start_node(node)
        self.wait_until(self._all_idle, 60, "both nodes are idle")

    def stop(self) -> None:
        """End every job and every daemon, by their process ids."""
        if "slurmctld" in self._running:
            self.run("scancel", "--user", getpass.getuser(), check=False)
            self.run("scancel", "--signal=KILL", "--user", getpass.getuser(), check=False)
            deadline = time.monotonic() + 15
            while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
                time.sleep(0.5)
        for name in reversed(list(self._running)):
            self._end(name)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._spawn(node, ["slurmd", "-D", "-N", node, "-f", str(self.conf)])

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd, as a crash would; the controller sees it by itself."""
        self._end(node, signal.SIGKILL)

    def run(self, *words: str, check: bool = True) -> str:
        """Run one of Slurm's commands and return what it printed.

        Raises:
            SlurmError: It failed and ``check`` is set.
        """
        done = subprocess.run(
            [_find(words[0]) or words[0], *words[1:]],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode:
            raise SlurmError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a job (of its first task, of an array)."""
        text = self.run("scontrol", "--oneliner", "show", "job", number).splitlines()[0]
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self, number: str) -> str:
        """State of a job, such as ``RUNNING``."""
        return self.job(number)["JobState"]

    def wait_until(self, happened: Callable[[], bool], seconds: float, what: str) -> None:
        """Poll until something is so.

        Raises:
            SlurmError: It is not so within ``seconds``, or a daemon ended; with logs.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                raise SlurmError(f"after {seconds:g} s not so: {what}\n{self.logs()}")
            time.sleep(0.3)

    def logs(self, lines: int = 25) -> str:
        """The last lines of every daemon's log."""
        parts = []
        for path in [*sorted(self.folder.glob("*.log")), self.folder / "munge" / "log"]:
            if path.is_file():
                tail = path.read_text(errors="replace").splitlines()[-lines:]
                parts.append("\n".join((f"---- {path.name}", *tail)))
        return "\n".join(parts)

    def _all_idle(self) -> bool:
        for name, process in self._running.items():
            if process.poll() is not None:
                raise SlurmError(f"{name} ended with {process.returncode}\n{self.logs()}")
        states = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()
        return states == ["idle"] * len(NODES)

    def _spawn(self, name: str, words: list[str]) -> None:
        with (self.folder / f"{name}.out.log").open("ab") as output:
            self._running[name] = subprocess.Popen(
                [_find(words[0]) or words[0], *words[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self._running.pop(name)
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=15)


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _free_neighbours() -> tuple[int, int]:
    """Two free ports next to each other."""
    for _ in range(50):
        first = _free_port()
        with socket.socket() as listening:
            try:
                listening.bind(("127.0.0.1", first + 1))
            except (OSError, OverflowError):
                continue
        return first, first + 1
    raise SlurmError("no two free ports next to each other")
