"""Script: train the toy under many settings, one run after another in the same processes.

Usage: train_toys.py SPEC.json, on every rank of torchrun. SPEC holds ``runs``, each with its
``settings``, ``units`` and ``poisoned`` rows of the data, and ``refuse``: part of the path of files
that rank 0 may not write. What stops a run is left in its folder as ``stopped-<rank>``.
"""

import errno
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch.distributed as dist
from helpers.toy import ToyData, ToyTask
from helpers.train_toy import save_export

from trainer.checkpoint.hashed import HashedFile
from trainer.engine.distributed import leave, start
from trainer.engine.trainer import Trainer
from trainer.errors import TinyNewsRecError
from trainer.recipes.load import from_settings


def refusing(part):
    """A disk that is full for some files."""
    real = HashedFile.write

    def write(self, data):
        if part in self._file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, data)

    return mock.patch.object(HashedFile, "write", write)


def train(spec):
    config = from_settings(spec["settings"], where="spec")
    data = ToyData(
        seed=config.run.seed,
        num_units=spec.get("units", 150),
        poisoned=frozenset(spec.get("poisoned", ())),
    )
    disk = refusing(spec["refuse"]) if "refuse" in spec else nullcontext()
    try:
        with disk, start(config) as distributed:
            Trainer(config, ToyTask(), data, save_export, distributed).fit()
    except TinyNewsRecError as error:
        said = f"{type(error).__name__}: {error}"
        (Path(config.run.dir) / f"stopped-{os.environ['RANK']}").write_text(said)


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text())
    # Importing torch and DeepSpeed costs more than a run: all share one process group.
    with mock.patch.object(dist, "destroy_process_group"):
        for run in spec["runs"]:
            train(run)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    leave(main())
