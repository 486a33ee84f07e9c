"""Trial meeting of ranks: who is there, whether an all-reduce works, how clocks differ.

Ranks sign in at the rendezvous store one by one, so that missing ranks are known by number; then
they form a process group.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from shards.errors import first_line

_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Result of a meeting, as one rank saw it."""

    ranks: int
    """Number of expected ranks."""
    missing: list[int] = field(default_factory=list)
    """Ranks that had not signed in at the end of the timeout."""
    hosts: list[str] = field(default_factory=list)
    """Host of each rank."""
    backend: str = ""
    """``nccl`` or ``gloo``."""
    seconds: float = 0.0
    """Seconds from signing in to the end of the all-reduce."""
    skew_s: float = 0.0
    """Latest clock minus earliest clock in seconds, taken right after an all-reduce."""
    told: list[Any] = field(default_factory=list)
    """Data of each rank, on rank 0."""
    error: str = ""
    """Reason why the all-reduce failed."""


def meet(told: Any, timeout_s: float, environment: Mapping[str, str] = os.environ) -> Meeting:
    """Meet the other ranks, which RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT define.

    Args:
        told: Plain data for rank 0.
        timeout_s: Seconds to wait for the other ranks, and for an all-reduce.
        environment: Variables to read.
    """
    from torch.distributed import DistError, PrefixStore, TCPStore

    rank, ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    agent_holds_it = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    start = time.monotonic()
    try:
        tcp = TCPStore(
            environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), None,
            is_master=rank == 0 and not agent_holds_it, wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )  # fmt: skip
    except DistError as refusal:
        reason = first_line(refusal)
        return Meeting(ranks=ranks, missing=[0] if rank else [], error=f"no rendezvous: {reason}")
    store = PrefixStore("preflight", tcp)
    store.set(f"rank {rank}", json.dumps([socket.gethostname(), told]))
    missing = list(range(ranks))
    while missing and time.monotonic() - start < timeout_s:
        missing = [other for other in missing if not store.check([f"rank {other}"])]
        time.sleep(_POLL_S if missing else 0)
    if missing:
        return Meeting(ranks=ranks, missing=missing, error="they did not arrive")
    heard = [json.loads(store.get(f"rank {other}")) for other in range(ranks)]
    backend, skew_s, error = _all_reduce(rank, ranks, PrefixStore("group", store), timeout_s)
    return Meeting(
        ranks=ranks,
        hosts=[host for host, _ in heard],
        backend=backend,
        seconds=time.monotonic() - start,
        skew_s=skew_s,
        told=[words for _, words in heard] if rank == 0 else [],
        error=error,
    )


def meet_here(processes: int, timeout_s: float) -> Meeting:
    """Start ranks on this machine and let them meet; all have ended when this returns.

    Args:
        processes: Number of ranks.
        timeout_s: Seconds that ranks wait for each other.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "trainer.engine.probe", str(timeout_s)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    # The import of torch does not count as waiting, and may take long on a busy machine.
    end = time.monotonic() + 2 * timeout_s + 60
    try:
        out, err = running[0].communicate(timeout=max(1.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Meeting(ranks=processes, missing=[0], error="rank 0 does not answer")
    finally:
        for process in running:
            process.kill()
            process.communicate()
    if running[0].returncode:
        reason = (err.strip().splitlines() or ["no message"])[-1]
        return Meeting(ranks=processes, missing=[0], error=f"rank 0 failed: {reason}")
    return Meeting(**json.loads(out.splitlines()[-1]))


def _all_reduce(rank: int, ranks: int, store: Any, timeout_s: float) -> tuple[str, float, str]:
    """Return the backend, the clock difference, and the reason of a failure."""
    import torch
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_RANK", "0"))
    has_gpu = torch.cuda.is_available() and local < torch.cuda.device_count()
    backend = "nccl" if has_gpu else "gloo"
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    limit = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=ranks, timeout=limit,
            device_id=device if has_gpu else None,
        )  # fmt: skip
        count = torch.ones(1, dtype=torch.float64, device=device)
        dist.all_reduce(count)
        times = torch.zeros(ranks, dtype=torch.float64, device=device)
        times[rank] = time.time()
        dist.all_reduce(times)
        found, clocks = int(count.item()), times.tolist()
    except (RuntimeError, ValueError) as error:
        return backend, 0.0, f"all-reduce failed: {first_line(error)}"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if found != ranks:
        return backend, 0.0, f"all-reduce gave {found}, expected {ranks}"
    return backend, max(clocks) - min(clocks), ""


def main() -> int:
    """Run a rank of :func:`meet_here`; rank 0 prints the meeting as JSON."""
    met = meet(None, float(sys.argv[1]))
    if os.environ["RANK"] == "0":
        print(json.dumps(asdict(met)), flush=True)
    return 0


if __name__ == "__main__":
    from trainer.engine.distributed import leave

    leave(main())
