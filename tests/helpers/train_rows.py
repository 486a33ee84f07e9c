"""Script: train many small runs one after another in the same processes, and keep what they did.

Usage: train_rows.py SPEC.json, alone or on every rank of torchrun. SPEC holds ``rows`` (name to
settings) and ``out``, the folder where rank 0 leaves ``<name>.json`` with the losses and
``<name>.safetensors`` with the gradient of the first step by parameter name. Importing torch and
DeepSpeed costs more than a row, so all rows of a number of ranks share one process group.
"""

import json
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch.distributed as dist
from safetensors.torch import save_file

from trainer.engine import session
from trainer.engine.distributed import leave, start
from trainer.engine.trainer import Trainer
from trainer.recipes.load import from_settings
from trainer.tasks.build import build


class Recorder:
    """Keeps Adam's first moment after the first step, which is (1 - beta) times the gradient."""

    def __init__(self, backend, beta):
        self.backend, self.beta = backend, beta
        self.gradient = {}
        self.step = backend.step
        backend.step = self

    def __call__(self):
        result = self.step()
        if not self.gradient:
            for name, parameter in self.backend.parameters().items():
                if parameter.requires_grad:
                    moment = self.backend.full_moment(parameter, "exp_avg").detach().cpu()
                    self.gradient[name] = (moment / (1 - self.beta)).contiguous()
        return result


def train(name, settings, out):
    config = from_settings(settings, where=name)
    recorders = []

    def recorded(*arguments):
        backend = build_backend(*arguments)
        recorders.append(Recorder(backend, config.optimizer.betas[0]))
        return backend

    build_backend = session.build_backend
    with mock.patch.object(session, "build_backend", recorded), start(config) as distributed:
        task = build(config)
        folder = Trainer(
            config, task.module, task.data, task.export, distributed, task.validation
        ).fit()
        is_main = distributed.is_main
    if is_main:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses = {record["step"]: record["train/loss"] for record in map(json.loads, lines)}
        save_file(recorders[0].gradient, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps({"losses": losses}))


@contextmanager
def one_process_group():
    """Runs end without leaving the process group: the next one finds it there."""
    with mock.patch.object(dist, "destroy_process_group"):
        yield
    if dist.is_initialized():
        dist.destroy_process_group()


def main():
    spec = json.loads(Path(sys.argv[1]).read_text())
    out = Path(spec["out"])
    with one_process_group():
        for name, settings in spec["rows"].items():
            try:
                train(name, settings, out)
            except Exception:
                (out / f"{name}.error").write_text(traceback.format_exc())
                if dist.is_initialized() and dist.get_world_size() > 1:
                    # The other ranks may wait for this one in the middle of a step.
                    raise
    return 0


if __name__ == "__main__":
    leave(main())
