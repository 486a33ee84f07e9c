"""What a batch script must know about the cluster: a section of the pipeline's file, or a file of
its own that several pipelines and ``tnr launch slurm`` share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from launchers.settings import build, read_yaml
from trainer.errors import ConfigError

CLUSTER_FILE = "TNR_CLUSTER"
"""Environment variable that names the cluster file where no other is named."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """A Slurm cluster; ``launchers/templates/cluster.yaml`` explains every key."""

    partition: str | None = None
    """Partition, if there is a choice."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    signal_s: int = 180
    """Seconds before the time limit at which the ranks are told to checkpoint."""
    max_requeues: int = 20
    """How often a job that stopped with a checkpoint starts again."""
    max_array_tasks: int = 8
    """Tasks of an array job that run at the same time."""
    tasks: Literal["per_node", "per_rank"] = "per_node"
    """One Slurm task a node, with torchrun inside it, or one Slurm task a rank."""
    python: str = "python"
    """The interpreter of the environment on the nodes."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    setup: tuple[str, ...] = ()
    """Shell lines before the command, such as ``source .venv/bin/activate``."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    network_interface: str | None = None
    """Interface that gloo and NCCL talk over, such as ``ib0``."""
    srun_options: tuple[str, ...] = ()
    """Further options of ``srun``, such as ``--container-image=tnr.sqsh`` (pyxis)."""
    container: tuple[str, ...] = ()
    """Words before the command, such as ``apptainer exec --nv tnr.sif``."""
    directives: tuple[str, ...] = ()
    """Further ``#SBATCH`` options, such as ``--exclude=node07``."""

    def __post_init__(self) -> None:
        """Check what would break a script, or become another line of it.

        Raises:
            ConfigError: Naming the key.
        """
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                value = (*value, *value.values())
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and name != "setup" and re.search(r"[\n\r\0]", text):
                    raise ConfigError(f"cluster.{name} is {text!r}; expected one line")
        for name in ("signal_s", "max_requeues"):
            if getattr(self, name) < 0:
                raise ConfigError(f"cluster.{name} is {getattr(self, name)}; expected at least 0")
        if self.max_array_tasks < 1:
            raise ConfigError(
                f"cluster.max_array_tasks is {self.max_array_tasks}; expected at least 1"
            )
        for name in ("directives", "srun_options"):
            wrong = [option for option in getattr(self, name) if not option.startswith("--")]
            if wrong:
                raise ConfigError(
                    f"cluster.{name} has {wrong[0]!r}; expected options that begin with --"
                )
        bad = [name for name in self.env if not _NAME.fullmatch(str(name))]
        if bad:
            raise ConfigError(f"cluster.env has {bad[0]!r}, which is no name of a variable")


def load_cluster(path: str | Path | None = None) -> ClusterConfig:
    """Read a cluster file.

    Args:
        path: The file; None takes ``$TNR_CLUSTER``, and where that is unset every default.

    Raises:
        ConfigError: The file is missing, or a key or value is wrong.
    """
    named = path or os.environ.get(CLUSTER_FILE)
    if not named:
        return ClusterConfig()
    try:
        return build(ClusterConfig, read_yaml(named), "")
    except ConfigError as error:
        raise ConfigError(f"cluster file {named}: {error}") from error
