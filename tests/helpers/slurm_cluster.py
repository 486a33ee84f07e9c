"""A Slurm cluster of two nodes on this machine: munged, slurmctld and two slurmd on loopback.

Everything lives in one temporary folder, on ports that were free, and is ended by process id. It
needs root (slurmd starts jobs for their owners) and Debian's ``slurm-wlm`` and ``munge``. A job
that is requeued waits until its credential has expired: two minutes by default, here five seconds.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("node0", "node1")
START_S = 60.0

CONF = """
ClusterName=tnr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
SlurmdTimeout=20
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={port0} CPUs=1
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=1
PartitionName=main Nodes=node[0-1] Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no cluster can be started here; None where it can."""
    missing = [name for name in DAEMONS if _find(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "slurmd must be started by root"
    return None


class SlurmCluster:
    """The running cluster; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen] = {}
        self._before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start_munge()
            self._write_conf()
            os.environ["SLURM_CONF"] = str(self.conf)
            self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
            for node in NODES:
                self.start_node(node)
            wait_for(lambda: self.idle() == 2, START_S, self.logs, "two idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", "--signal=KILL", "--full", "-u", "root"], timeout=20)
        for name in reversed(list(self._daemons)):
            self.stop(name)
        for name, value in self._before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._spawn(node, "slurmd", "-D", "-N", node, "-f", str(self.conf))

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a daemon: ``node0``, ``node1``, ``slurmctld`` or ``munged``."""
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(number)
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(5)

    def idle(self) -> int:
        """Nodes that are idle."""
        return command("sinfo", "--noheader", "--Node", "--format=%t").split().count("idle")

    def state(self, job: str) -> str:
        """State of a job, such as RUNNING; of an array its tasks' states, joined."""
        found = command("squeue", "--noheader", "--states=all", "--array", "-j", job, "-o", "%T")
        return " ".join(sorted(set(found.split())))

    def wait(self, job: str, states: set[str], timeout_s: float, *logs: Path) -> str:
        """Wait until a job (all tasks of an array) is in one of the states.

        Raises:
            AssertionError: It is not in time, or ended otherwise; has the logs.
        """
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

        def there() -> bool:
            now = set(self.state(job).split())
            if now and now <= ended and not now <= states:
                raise AssertionError(f"job {job} is {now}, not {states}\n{self.logs(*logs)}")
            return bool(now) and now <= states

        wait_for(there, timeout_s, lambda: self.logs(*logs), f"job {job} in {states}")
        return self.state(job)

    def logs(self, *paths: Path) -> str:
        """What the queue, the nodes and the daemons' logs say, and the ends of further files."""
        parts = [command("squeue", "--states=all"), command("sinfo", "-N", "-l")]
        parts.append(command("scontrol", "show", "job"))
        for path in (*self.folder.glob("*.log"), *paths):
            if path.is_file():
                lines = path.read_text(errors="replace").splitlines()[-60:]
                parts.append("\n".join([f"---- {path}", *lines]))
        return "\n".join(parts)

    def _start_munge(self) -> None:
        """A munged with a key and a socket of its own; clients find it by slurm.conf."""
        munge = self.folder / "munge"
        munge.mkdir(parents=True)
        # munged refuses a socket below folders that others may write to, unless forced.
        munge.chmod(0o755)
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(256))
        key.chmod(0o400)
        words = ["--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket"]
        words += [f"--log-file={munge}/munged.log", f"--pid-file={munge}/munged.pid"]
        words += [f"--seed-file={munge}/seed"]
        self._spawn("munged", "munged", *words)
        wait_for((munge / "socket").exists, START_S, lambda: "", "munged's socket")

    def _write_conf(self) -> None:
        (self.folder / "state").mkdir()
        controller, port0, port1 = _free_ports(3)
        host = socket.gethostname().split(".")[0]
        text = CONF.format(
            host=host, folder=self.folder, controller=controller, port0=port0, port1=port1
        )
        self.conf.write_text(text)

    def _spawn(self, name: str, program: str, *words: str) -> None:
        path = _find(program)
        assert path is not None
        log = (self.folder / f"{name}.out.log").open("ab")
        with log:
            self._daemons[name] = subprocess.Popen(
                [path, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[SlurmCluster]:
    """A cluster in a folder; ended with the block."""
    with SlurmCluster(folder) as running:
        yield running


def command(*words: str) -> str:
    """Standard output of a Slurm command; empty where it failed, as it does now and then."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout


def wait_for(
    condition: Callable[[], bool], timeout_s: float, logs: Callable[[], str], what: str
) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: It did not come in time; has the logs.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout_s:g} s\n{logs()}")
        time.sleep(0.25)


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
