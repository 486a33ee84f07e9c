"""Opening of a run folder on rank 0: what it holds, and the checkpoint to continue from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.mixing import measure_mixing
from trainer.checkpoint.resume import check_same_run
from trainer.checkpoint.store import Checkpoint
from trainer.config.flat import to_dict
from trainer.config.schema import TrainConfig
from trainer.engine.callback import Run
from trainer.engine.run_folder import RunFolder
from trainer.engine.schedule import learning_rate_factor, length_of
from trainer.errors import CheckpointError, ConfigError
from trainer.hardware import warn_if_emulated
from trainer.tasks.base import TaskData
from trainer.tasks.registry import all_settings


@dataclass(frozen=True)
class Opened:
    """Findings of rank 0, sent to the other ranks."""

    checkpoint: Checkpoint | None
    is_finished: bool


def open_run(
    run: Run, data: TaskData, *, fingerprint: str, notes: Sequence[str], copy_steps: list[int]
) -> Opened:
    """Lock the folder and choose the checkpoint to continue from.

    Args:
        run: The run.
        data: The task's data, whose order, notes and choices are printed and recorded.
        fingerprint: Fingerprint of the data, including the validation's.
        notes: Lines to print about the validation.
        copy_steps: Steps that become teachers.

    Raises:
        CheckpointError: The folder holds another run, or its checkpoints are damaged or missing. A
            run that once passed step 0 never starts from scratch.
        ConfigError: The run is already past the configured end, or is finished and has exported
            other weights.
        TrainingError: Another process trains in the folder.
    """
    config, folder, store, steps = run.config, run.folder, run.store, run.steps
    folder.open()
    settings, state = to_dict(config), folder.state()
    stored = folder.stored_config()
    if stored is not None:
        check_same_run(stored, config, fingerprint, fingerprint, all_settings())
    is_finished = _is_done(config, state, steps) and folder.export.exists()
    checkpoint = store.look() if is_finished else store.find()
    if checkpoint is not None:
        _check_checkpoint(checkpoint, config, fingerprint)
        _check_reach(folder, checkpoint.step, steps, copy_steps)
        _check_schedule(config, checkpoint, steps, data.order.num_units)
    if is_finished:
        _check_export(config, folder, stored or settings)
        early = f" of {steps}; {state['reason']}" if state.get("reason") else ""
        folder.say(f"{folder.path} is finished: {state['step']} steps are done{early}")
        return Opened(None, is_finished=True)
    if checkpoint is None and state.get("step", 0) > 0:
        raise CheckpointError(
            f"{folder.path} was at step {state['step']}, but its checkpoints are missing: put "
            "them back, or start a new run in another folder"
        )
    step = 0 if checkpoint is None else checkpoint.step
    _begin(run, data, notes, step)
    return Opened(checkpoint, is_finished=False)


def _begin(run: Run, data: TaskData, notes: Sequence[str], step: int) -> None:
    """Record this start, and print what is known about it."""
    config, folder, steps = run.config, run.folder, run.steps
    ranks, batch = run.distributed.world_size, config.run.global_batch
    mixing = measure_mixing(data.order, batch)
    choice = data.sharing_choice(config.run.micro_batch, batch, ranks)
    start: dict[str, Any] = {"from_step": step, "steps": steps, "ranks": ranks}
    start["left_out"] = len(data.order.skipped)
    start["order"] = mixing.to_dict()
    lines = [_headline(run, step), mixing.line()]
    if choice is not None:
        start["share_titles"] = choice.to_dict()
        lines.append(choice.line())
    folder.describe(to_dict(config), run.distributed.deepspeed, start)
    folder.write_state("running", step, steps)
    for line in (*lines, *data.notes, *notes):
        folder.say(line)
    warn_if_emulated(config.run.precision, str(run.distributed.device), "run.precision", folder.say)


def _is_done(config: TrainConfig, state: Mapping[str, Any], steps: int) -> bool:
    """Return whether a run reached its last step, or ran out of patience."""
    if state.get("state") != "finished":
        return False
    patience = config.validates.patience if config.validates else None
    ended_early = patience is not None and state.get("without_improvement", 0) >= patience
    return ended_early or state.get("step", 0) >= steps


def _check_checkpoint(checkpoint: Checkpoint, config: TrainConfig, data: str) -> None:
    try:
        stored, stored_data = checkpoint.state["config"], checkpoint.state["data"]
        checkpoint.state["position"]
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.folder} lacks {error} in its state.json") from error
    check_same_run(stored, config, stored_data, data, all_settings())


def _check_reach(folder: RunFolder, step: int, steps: int, copy_steps: list[int]) -> None:
    if step > steps:
        raise ConfigError(
            f"the run has done {step} steps, but run.epochs and run.max_steps now end it at "
            f"{steps}: raise them, or start a new run in another folder"
        )
    gone = [s for s in copy_steps if s <= step and not folder.copy(s).exists()]
    if gone:
        raise ConfigError(
            f"run.copies wants copies of steps {gone}, but the run is past them, at step {step}, "
            "without such copies: choose later steps, or start a new run in another folder"
        )


def _check_schedule(
    config: TrainConfig, checkpoint: Checkpoint, steps: int, num_units: int
) -> None:
    """Refuse a new length that would change the learning rates of past steps."""
    optimizer, step = config.optimizer, checkpoint.step
    before = length_of(checkpoint.state["config"].get("run", {}), num_units)
    if not step or learning_rate_factor(optimizer, step, before) == learning_rate_factor(
        optimizer, step, steps
    ):
        return
    raise ConfigError(
        f"the run was to have {before} steps, but run.max_steps and run.epochs now make it "
        f"{steps}; under optimizer.schedule {optimizer.schedule} its first {step} steps would "
        "have had other learning rates. Restore these settings, or start a new run in another "
        "folder"
    )


def _check_export(config: TrainConfig, folder: RunFolder, stored: Mapping[str, Any]) -> None:
    """Refuse a change of ``run.export`` after a validated run has exported."""
    now = config.run.export
    was = stored.get("run", {}).get("export", now)
    if config.validates is not None and was != now:
        raise ConfigError(
            f"run.export was {was!r} when {folder.export} was written, and is now {now!r}: move "
            "that folder away to export the other weights, or restore the setting"
        )


def _headline(run: Run, step: int) -> str:
    config, here = run.config, run.distributed
    ranks, stage = here.world_size, here.zero_stage
    how = ("plain" if ranks == 1 else "DDP") if stage is None else f"DeepSpeed ZeRO-{stage}"
    return (
        f"{config.task} in {run.folder.path}: step {step} to {run.steps}, global batch "
        f"{config.run.global_batch} = {ranks} ranks x {here.accumulation} micro-batches x "
        f"{config.run.micro_batch}, {how}, {config.run.precision}, {here.device.type}"
    )
