"""Script: in every mode, take steps with and without one whose gradient is not finite.

Usage: not_finite_rows.py SPEC.json, on every rank of torchrun. SPEC holds ``rows`` (name to
settings) and ``out``; rank 0 leaves ``<name>.json``, which says what differs.
"""

import json
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
from helpers.toy import ToyData, ToyTask

from shards.stream import Stream
from trainer.engine.distributed import leave, start
from trainer.engine.session import Session
from trainer.recipes.load import from_settings

GOOD, BAD = (0, 1, 3), (0, 1, 2, 3)
POISONED = 2


def everything(session):
    """Whole weights and moments by name, and Adam's own counters."""
    model, optimizer = session.tensors()
    state = session.backend._optimizer.state.values()
    return {**model, **optimizer}, sorted({float(entry["step"]) for entry in state})


def tensors_equal(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


def take(config, distributed, steps, poison):
    """Steps over given global batches; what was there before and after the poisoned one."""
    torch.manual_seed(3)
    session = Session(config, ToyTask(), distributed, None, 4)
    backend, run = session.backend, config.run
    data = ToyData(seed=3)
    stream = Stream(data.order, run.global_batch, distributed.rank, distributed.world_size, None)
    batches = [next(stream).split(run.micro_batch) for _ in range(4)]
    results, around = [], []
    for step in steps:
        session.learning_rate.set(step + 1)
        is_poisoned = poison is not None and step == POISONED
        if is_poisoned:
            around.append(everything(session))
        if is_poisoned and poison == "scale":
            backend._scale.value = 2.0**40
        for micro, rows in enumerate(batches[step]):
            batch = data.collate(rows).batch
            with backend.micro_step(is_last=micro == len(batches[step]) - 1):
                loss = backend.module(batch)["loss"]
                # The last rank alone, in the first micro-batch alone.
                is_here = distributed.rank == distributed.world_size - 1 and micro == 0
                if is_poisoned and poison == "loss" and is_here:
                    loss = loss * float("inf")
                backend.backward(loss, is_last=micro == len(batches[step]) - 1)
        results.append(backend.step())
        if is_poisoned:
            around.append(everything(session))
            if poison == "scale":
                backend._scale.value = results[0].loss_scale
    return session, results, around


def compare(config):
    with start(config) as distributed:
        clean, clean_results, _ = take(config, distributed, GOOD, None)
        wanted, wanted_counters = everything(clean)
        found = {"losses_scaled": [r.loss_scale for r in clean_results], "poisons": {}}
        found["clean_applied"] = [r.is_applied for r in clean_results]
        for poison in ("loss", "scale") if config.run.precision == "fp16" else ("loss",):
            session, results, (before, after) = take(config, distributed, BAD, poison)
            got, counters = everything(session)
            found["poisons"][poison] = {
                "applied": [r.is_applied for r in results],
                "norms": [r.grad_norm for r in results],
                "scales": [r.loss_scale for r in results],
                "updates": session.backend.state()["updates"],
                "step_left_all_as_it_was": tensors_equal(before[0], after[0])
                and before[1] == after[1],
                "run_is_as_without_it": tensors_equal(wanted, got) and counters == wanted_counters,
                "counters": counters,
            }
    return found


def main():
    spec = json.loads(Path(sys.argv[1]).read_text())
    with mock.patch.object(dist, "destroy_process_group"):
        for name, settings in spec["rows"].items():
            found = compare(from_settings(settings, where=name))
            if dist.get_rank() == 0:
                (Path(spec["out"]) / f"{name}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    leave(main())
