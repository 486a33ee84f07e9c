"""Script: train the toy task in this process (or rank). Exit codes are the command line's.

Usage: train_toy.py SPEC.json, where SPEC holds the settings and the toy's options.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from helpers.toy import ToyData, ToyTask

from trainer.engine.distributed import leave, start
from trainer.engine.trainer import Trainer
from trainer.errors import TinyNewsRecError
from trainer.recipes.load import from_settings


def save_export(model, folder, info) -> None:
    """A folder with the weights by name, as plain lists."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().tolist() for name, value in model.state_dict().items()}
    (folder / "export.json").write_text(json.dumps({"weights": weights, "info": info}))


class SlowData(ToyData):
    """Takes its time for every micro-batch, so that a kill from outside finds the run at work."""

    def __init__(self, pause_s: float, **options) -> None:
        super().__init__(**options)
        self._pause_s = pause_s

    def collate(self, batch_rows):
        time.sleep(self._pause_s)
        return super().collate(batch_rows)


class KillingData(ToyData):
    """Sends this process a signal when a step's data are asked for, as an outside killer would.

    ``SLEEP`` stands for a signal but sends none: the data never come.
    """

    def __init__(self, kill: dict, **options) -> None:
        super().__init__(**options)
        self._kill = kill

    def collate(self, batch_rows):
        samples = batch_rows.position.epoch * self.order.num_units + batch_rows.position.samples
        rank = int(os.environ.get("RANK", "0"))
        if samples == self._kill["samples"] and rank in self._kill["ranks"]:
            if self._kill["signal"] == "SLEEP":
                time.sleep(10_000)
            os.kill(os.getpid(), getattr(signal, self._kill["signal"]))
        return super().collate(batch_rows)


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text())
    try:
        config = from_settings(spec["settings"], where="spec")
        options = {"seed": config.run.seed, "poisoned": frozenset(spec.get("poisoned", ()))}
        with start(config) as distributed:
            if config.run.deepspeed is None:
                assert "deepspeed" not in sys.modules, "a plain run imported DeepSpeed"
            task = ToyTask(dropout=spec.get("dropout", 0.0))
            kill = spec.get("kill")
            data = KillingData(kill, **options) if kill else ToyData(**options)
            if "pause_s" in spec:
                data = SlowData(spec["pause_s"], **options)
            if "ballast" in spec:
                # Floats that make the files of a checkpoint large enough to be killed in.
                task.register_buffer("ballast", torch.ones(spec["ballast"]))
            Trainer(config, task, data, save_export, distributed).fit()
            if config.run.deepspeed is None:
                assert "deepspeed" not in sys.modules, "a plain run imported DeepSpeed"
    except TinyNewsRecError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    leave(main())
