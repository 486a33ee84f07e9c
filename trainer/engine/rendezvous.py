"""Whether the port at which ranks meet is free, asked before anything waits for it. No torch.

Where another program holds it, torch ends in a traceback at best; at worst ranks talk to that
program until their timeout, half an hour later.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Mapping, Sequence

from trainer.errors import TrainingError

_AGENT_HOLDS_IT = "TORCHELASTIC_USE_AGENT_STORE"


def check_master_port(environment: Mapping[str, str] = os.environ) -> None:
    """See, on rank 0 of ranks that were started one by one, that MASTER_PORT is free.

    Under torchrun the agent holds the port already, and there is nothing to see.

    Args:
        environment: RANK, MASTER_ADDR, MASTER_PORT.

    Raises:
        TrainingError: Another program listens there.
    """
    if environment.get("RANK") != "0" or environment.get(_AGENT_HOLDS_IT) == "True":
        return
    port = environment.get("MASTER_PORT", "")
    if port.isdigit():
        _check_free(environment.get("MASTER_ADDR", "localhost"), int(port), "MASTER_PORT")


def check_endpoint(
    torchrun_options: Sequence[str], environment: Mapping[str, str] = os.environ
) -> None:
    """See, on the first node of a job, that torchrun's ``--rdzv-endpoint`` is free.

    Args:
        torchrun_options: As torchrun is given them.
        environment: ``SLURM_NODEID``, where Slurm started this.

    Raises:
        TrainingError: Another program listens there.
    """
    options = _options(torchrun_options)
    endpoint = options.get("rdzv-endpoint", "")
    host, _, port = endpoint.rpartition(":")
    is_first = environment.get("SLURM_NODEID", "0" if options.get("nnodes") == "1" else "") == "0"
    # Only the first node may ask: on the others, and on one machine that plays several nodes, the
    # port is rightly held by the first.
    if is_first and host and port.isdigit() and int(port):
        _check_free(host, int(port), "the rendezvous port")


def is_free(port: int) -> bool:
    """Whether this process could listen at a port of this machine, on every address of it.

    Args:
        port: 1 to 65535.
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


def is_here(host: str) -> bool:
    """Whether a host name is this machine's.

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
    raise TrainingError(
        f"{what} {port} of {host} is taken by another program, maybe left over from an earlier "
        f"attempt ('ss -ltnp sport = :{port}' shows which); end it, or start the ranks with "
        "another MASTER_PORT"
    )


def _options(words: Sequence[str]) -> dict[str, str]:
    """Options with values, ``--a=b`` or ``--a b``, with dashes for underscores."""
    found = {}
    for place, word in enumerate(words):
        if word in ("-m", "--module"):
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[place + 1] if place + 1 < len(words) else ""
            found[name.replace("_", "-")] = value if equals else following
    return found
