"""``tnr preflight``: check whether this machine and its ranks are ready for a run."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shards.numbers import real, whole
from trainer.cli.settings import add_settings, take_preset

if TYPE_CHECKING:
    from launchers.preflight import Check
    from trainer.config.schema import TrainConfig
    from trainer.engine.probe import Meeting

CLOCK_LIMIT_S = 1.0
"""Clocks that differ by more seconds than this make the logs of several nodes hard to compare."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "preflight",
        help="check packages, disk, data sets, rendezvous and an all-reduce before a run",
        description=(
            "Print one line per check: ok, warn or fail, what was found, what to do. With RECIPE "
            "and overrides as for 'tnr train', the run's folder and data sets are checked too. "
            "Under torchrun or srun, all ranks meet, and rank 0 reports for all of them. The "
            "exit code is 1 if a check failed. Options come before RECIPE."
        ),
        epilog=(
            "example: tnr preflight --processes 2 post_train --data.articles data/articles "
            "--run.dir runs/teacher. On two nodes: srun -N 2 --ntasks-per-node 1 tnr preflight, "
            "with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set"
        ),
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe's name or path")
    add_settings(parser)
    parser.add_argument(
        "--processes",
        type=whole(most=1_000_000),
        default=1,
        help="ranks to start here for an all-reduce (1: no all-reduce)",
    )
    parser.add_argument(
        "--timeout",
        type=real(most=1e6, above=0),
        default=60.0,
        help="seconds that ranks wait for each other (default 60)",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the checks, print them, and return 1 if one failed."""
    import json

    from launchers.preflight import Outcome
    from trainer.recipes.load import load_config

    take_preset(arguments)
    config = None
    if arguments.recipe is not None:
        config = load_config(arguments.recipe, arguments.overrides, preset=arguments.preset)
    checks = _here(config, arguments.preset)
    rank = int(os.environ.get("RANK", "0"))
    checks += _together(arguments, checks)
    is_bad = any(check.outcome is Outcome.FAIL for check in checks)
    if rank == 0:
        if arguments.json:
            print(json.dumps({"ok": not is_bad, "checks": [asdict(c) for c in checks]}, indent=2))
        else:
            print("\n".join(check.line() for check in checks))
    return int(is_bad)


def _here(config: TrainConfig | None, preset: str | None) -> list[Check]:
    """Check this machine alone."""
    from pathlib import Path

    from launchers import preflight

    torch_check, has_gpu = _torch()
    is_compiled = config is not None and (
        config.run.compile or (config.run.deepspeed is not None and not has_gpu)
    )
    checks = [
        preflight.check_packages(),
        torch_check,
        *([_precision(config, preset)] if "torch" in sys.modules else []),
        preflight.check_compiler_tools(is_needed=is_compiled),
        preflight.check_extensions(),
        *preflight.check_run_folder(Path(config.run.dir if config else "."), _needed(config)),
        preflight.check_shared_memory(),
        preflight.check_host(),
        preflight.check_port(),
        preflight.check_slurm(),
    ]
    return checks + ([_data(config)] if config is not None else [])


def _torch() -> tuple[Check, bool]:
    from launchers.preflight import Check, Outcome

    try:
        import torch
    except (ImportError, OSError) as error:
        hint = "install torch for this machine's driver"
        return Check(name="torch", outcome=Outcome.FAIL, found=str(error), hint=hint), False
    found = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check(name="torch", outcome=Outcome.OK, found=f"{found}, {', '.join(names)}"), True
    from pathlib import Path

    if Path("/proc/driver/nvidia/version").exists():
        hint = "this torch does not see the machine's GPU: install one built for its driver"
        return Check(name="torch", outcome=Outcome.FAIL, found=f"{found}, no GPU", hint=hint), False
    return Check(
        name="torch", outcome=Outcome.OK, found=(f"{found}, no GPU: training runs on CPUs")
    ), False


def _precision(config: TrainConfig | None, preset: str | None) -> Check:
    """Check the run's precision, or report what the hardware computes in without a run."""
    from launchers.preflight import Check, Outcome
    from trainer.errors import ConfigError
    from trainer.hardware import check_preset, emulated, training_device

    device = training_device()
    known = {name: emulated(name, device) for name in ("bf16", "fp16")}
    slow = [name for name, found in known.items() if found is not None]
    found = f"only emulated: {', '.join(slow)}" if slow else "bf16 and fp16 in hardware"
    if config is None:
        return Check(name="precision", outcome=Outcome.OK, found=found)
    try:
        check_preset(preset, config.run)
    except ConfigError as error:
        return Check(name="precision", outcome=Outcome.FAIL, found=str(error))
    own = known.get(config.run.precision)
    if own is not None:
        said = own.line("run.precision")
        return Check(name="precision", outcome=Outcome.WARN, found=said)
    return Check(name="precision", outcome=Outcome.OK, found=config.run.precision)


def _needed(config: TrainConfig | None) -> int | None:
    """Estimate the bytes that a run writes into its folder; None if unknown."""
    if config is None:
        return None
    from trainer.errors import TinyNewsRecError
    from trainer.plan.plan import Options, make_plan

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        plan = make_plan(config, Options(processes=processes), name="", has_data=True)
    except TinyNewsRecError:
        return None  # the check of the data names the error
    return sum(item.bytes for item in plan.disk if item.where == config.run.dir)


def _data(config: TrainConfig) -> Check:
    from launchers.preflight import Check, Outcome
    from trainer.errors import TinyNewsRecError
    from trainer.tasks.registry import open_sources

    try:
        sources = open_sources(config)
        units = sources.num_units
    except TinyNewsRecError as error:
        return Check(name="data", outcome=Outcome.FAIL, found=str(error))
    sets = f"{sources.articles.num_rows:,} articles with tokens"
    if sources.ordered is not sources.articles:
        sets += f", {sources.ordered.num_rows:,} {sources.ordered.kind}"
    return Check(name="data", outcome=Outcome.OK, found=f"{sets}, {units:,} units per epoch")


def _together(arguments: argparse.Namespace, own: list[Check]) -> list[Check]:
    """Check all ranks: those of this job, or ranks that are started here."""
    from launchers.preflight import Outcome
    from trainer.engine.probe import meet, meet_here

    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        bad = [asdict(check) for check in own if check.outcome is not Outcome.OK]
        return _of_meeting(meet(bad, arguments.timeout))
    if arguments.processes > 1:
        return _of_meeting(meet_here(arguments.processes, arguments.timeout))
    return []


def _of_meeting(met: Meeting) -> list[Check]:
    from launchers.preflight import Check, Outcome

    if met.missing:
        who = ", ".join(map(str, met.missing))
        hint = (
            "look at their nodes: were the ranks started, do host names resolve, is the port "
            "open between nodes (firewall, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)?"
        )
        found = f"rank {who} of {met.ranks} did not answer: {met.error}"
        return [Check(name="all-reduce", outcome=Outcome.FAIL, found=found, hint=hint)]
    if met.error:
        hint = "set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to the network between the nodes"
        return [Check(name="all-reduce", outcome=Outcome.FAIL, found=met.error, hint=hint)]
    found = f"{met.ranks} ranks on {', '.join(sorted(set(met.hosts)))} over {met.backend}"
    checks = [
        Check(name="all-reduce", outcome=Outcome.OK, found=f"{found} in {met.seconds:.1f} s"),
        _clock(met.skew_s),
    ]
    others = list(enumerate(met.told))[1:]  # rank 0 prints its own checks
    return checks + [
        _of_rank(rank, met.hosts[rank], content) for rank, told in others for content in told or ()
    ]


def _clock(skew_s: float) -> Check:
    from launchers.preflight import Check, Outcome

    found = f"clocks of the ranks differ by {skew_s:.3f} s"
    if skew_s <= CLOCK_LIMIT_S:
        return Check(name="clocks", outcome=Outcome.OK, found=found)
    hint = (
        "training does not depend on clocks, but times in logs mislead: synchronise the clocks "
        "(chrony)"
    )
    return Check(name="clocks", outcome=Outcome.WARN, found=found, hint=hint)


def _of_rank(rank: int, host: str, content: dict[str, Any]) -> Check:
    """Return a failed check or warning of another rank, with the rank's name."""
    from launchers.preflight import Check, Outcome

    return Check(
        name=content["name"],
        outcome=Outcome(content["outcome"]),
        found=f"rank {rank} on {host}: {content['found']}",
        hint=content["hint"],
    )
