"""Check that the rendezvous port is free before anything waits for it.

This module does not import torch.

If another program holds the port, torch ends in a traceback at best; at worst, ranks talk to that
program until their timeout, half an hour later.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import TrainingError

_AGENT_HOLDS_IT = "TORCHELASTIC_USE_AGENT_STORE"
_ATTEMPT = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
_LISTENING = "0A"  # as in /proc/net/tcp


def check_master_port(environment: Mapping[str, str] = os.environ) -> None:
    """Check on rank 0, if ranks were started singly, that MASTER_PORT is free.

    Under torchrun, the agent already holds the port, so there is no check.

    Args:
        environment: Variables RANK, MASTER_ADDR, MASTER_PORT.

    Raises:
        TrainingError: Another program listens at the port.
    """
    if environment.get("RANK") != "0" or environment.get(_AGENT_HOLDS_IT) == "True":
        return
    port = environment.get("MASTER_PORT", "")
    if port.isdigit():
        _check_free(environment.get("MASTER_ADDR", "localhost"), int(port), "MASTER_PORT")


def check_endpoint(
    torchrun_options: Sequence[str], environment: Mapping[str, str] = os.environ
) -> None:
    """Check, on the first node of a job, that torchrun's ``--rdzv-endpoint`` is free.

    Args:
        torchrun_options: Options as given to torchrun.
        environment: Variables, with ``SLURM_NODEID`` if Slurm started this process.

    Raises:
        TrainingError: Another program listens at the port.
    """
    options = _options(torchrun_options)
    endpoint = options.get("rdzv-endpoint", "")
    host, _, port = endpoint.rpartition(":")
    is_first = environment.get("SLURM_NODEID", "0" if options.get("nnodes") == "1" else "") == "0"
    # Only the first node checks, because the others connect. If one machine plays several nodes,
    # the agent of another node may already listen, rightly.
    if not (is_first and host and port.isdigit() and int(port)):
        return
    pid = holder(int(port))
    if pid is None or not _is_of_this_attempt(pid, environment):
        _check_free(host, int(port), "the rendezvous port")


def is_free(port: int) -> bool:
    """Return whether this process could listen at a port on all addresses of this machine.

    Args:
        port: Port from 1 to 65535.
    """
    families = [socket.AF_INET, *([socket.AF_INET6] if socket.has_ipv6 else [])]
    for family in families:
        try:
            with socket.create_server(("", port), family=family):
                pass
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
    return True


def holder(port: int) -> int | None:
    """Return the id of the process that listens at a port of this machine.

    Args:
        port: Port from 1 to 65535.

    Returns:
        The process id; None if nobody listens, or the process belongs to another user.
    """
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.is_file() else ():
            _, local, _, state, *rest = line.split()
            if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{rest[5]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to another user
            if str(link.readlink()) in inodes:
                return int(link.parts[2])
    return None


def is_here(host: str) -> bool:
    """Return whether a host name is this machine's.

    Args:
        host: A name or an address.
    """
    with contextlib.suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family) as trial:
                trial.bind((address[0], 0))
                return True
    return False


def _check_free(host: str, port: int, what: str) -> None:
    if not is_here(host) or is_free(port):
        return
    pid = holder(port)
    who = f"process {pid}" if pid is not None else f"another program ('ss -ltnp sport = :{port}')"
    raise TrainingError(
        f"{what} {port} of {host} is taken by {who}, perhaps left over from an earlier attempt: "
        "end it, or start the ranks with another MASTER_PORT"
    )


def _is_of_this_attempt(pid: int, environment: Mapping[str, str]) -> bool:
    """Return whether a process belongs to this attempt of this Slurm job."""
    if "SLURM_JOB_ID" not in environment:
        return False
    try:
        words = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return False
    theirs = dict(word.partition("=")[::2] for word in words)
    return all(theirs.get(name) == environment.get(name) for name in _ATTEMPT)


def _options(words: Sequence[str]) -> dict[str, str]:
    """Parse options with values, ``--a=b`` or ``--a b``, with dashes for underscores."""
    found = {}
    for place, word in enumerate(words):
        if word in ("-m", "--module"):
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[place + 1] if place + 1 < len(words) else ""
            found[name.replace("_", "-")] = value if equals else following
    return found
