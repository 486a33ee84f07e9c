"""Train the toy task in this process: fast, for everything that needs no second rank."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.launch import settings
from helpers.toy import ToyData, ToyTask
from helpers.train_toy import save_export

from trainer.engine.callback import Callback
from trainer.engine.distributed import Distributed, start
from trainer.engine.trainer import Trainer
from trainer.errors import TrainingError
from trainer.recipes.load import from_settings


def train(
    run_dir: Path,
    *,
    data: ToyData | None = None,
    make_task: Callable[[], Any] = ToyTask,
    export: Callable[..., object] = save_export,
    validation: Any = None,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> Path:
    """One plain run, settings changed by keyword (``run__max_steps=5``)."""
    config = from_settings(settings(run_dir, **changes), where="test")
    with start(config) as distributed:
        task = make_task()
        data = data or ToyData(seed=config.run.seed)
        return Trainer(config, task, data, export, distributed, validation, callbacks).fit()


def alone() -> Distributed:
    """A process without others, that trains nothing."""
    return Distributed(
        accelerator=None,  # type: ignore[arg-type]
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        accumulation=1,
        deepspeed=None,
    )


def state(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "state.json").read_text()))


def weights(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "export.json").read_text())["weights"])


class StopAfter(ToyData):
    """Fails like a crash when a step's samples are asked for; the run has no chance to save."""

    def __init__(self, samples: int, **options: Any) -> None:
        super().__init__(**options)
        self._samples = samples

    def collate(self, batch_rows):
        position = batch_rows.position
        if position.epoch * self.order.num_units + position.samples >= self._samples:
            raise TrainingError("crash of the test")
        return super().collate(batch_rows)


def train_until_crash(run_dir: Path, steps: int, **changes: Any) -> None:
    """Train and stop without saving once ``steps`` steps of 8 samples are used up."""
    with pytest.raises(TrainingError, match="crash of the test"):
        train(run_dir, data=StopAfter(8 * (steps + 1), seed=3), **changes)
