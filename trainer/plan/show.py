"""A plan as text for people and as plain data for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from shards.progress import format_duration
from trainer.plan.advice import GIB
from trainer.plan.memory import RankMemory
from trainer.plan.plan import Options, Plan

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def lines(plan: Plan, options: Options) -> list[str]:
    """Format the plan of one run: a heading and one line per topic."""
    return [
        f"{plan.name}: {plan.task}",
        *_batches(plan),
        *_work(plan, options),
        *_memory(plan, options),
        *_disk(plan),
        *(f"  note     {note}" for note in plan.notes),
    ]


def to_json(plan: Plan) -> dict[str, Any]:
    """Convert the plan to plain data: bytes, FLOPs, seconds, counts.

    Args:
        plan: The plan.

    Returns:
        A value for ``json.dumps``; peaks of memory are added by way.
    """
    content = dataclasses.asdict(plan)
    content["peak"] = plan.peak
    content["size"] |= {"parameters": plan.size.parameters, "trained": plan.size.trained}
    content["micro"]["mean"]["padding"] = plan.micro.mean.padding
    for name, memory in plan.memory.items():
        content["memory"][name]["fixed"] = memory.fixed
        content["memory"][name]["peak"] = memory.peak(plan.activations)
        content["memory"][name]["peak_checkpointed"] = memory.peak(plan.activations_checkpointed)
    return content


def quantity(value: float, unit: str = "") -> str:
    """Format three digits and a decimal prefix: ``1.25 PFLOP``."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_PREFIXES[power]}{unit}".rstrip()


def _batches(plan: Plan) -> list[str]:
    batches = plan.batches
    found = [
        f"  batch    {batches.line()}; micro-batches that divide: {_list(batches.micro_batches)}"
    ]
    if plan.steps is None:
        return [*found, "  steps    unknown without data; give --articles and --impressions"]
    steps, copies = plan.steps, _list(plan.steps.copies) or "none"
    found.append(
        f"  steps    {steps.units:,} units x {steps.epochs:g} epochs -> {steps.steps:,} optimizer "
        f"steps, {steps.warmup_steps:,} of them warm-up"
    )
    found.append(
        f"           checkpoints after {_list(steps.checkpoints)}; teacher copies: {copies}"
    )
    return found


def _work(plan: Plan, options: Options) -> list[str]:
    step = plan.micro.mean.times(plan.batches.accumulation * plan.batches.ranks)
    tokens = f"{quantity(step.tokens)} tokens per step in {quantity(step.slots)} slots"
    flops = f"{quantity(plan.flops_a_step, 'FLOP')} per step forward and backward"
    if plan.steps is not None:
        tokens += f", {quantity(step.tokens * plan.steps.steps)} tokens in the run"
        flops += f", {quantity(plan.flops_a_step * plan.steps.steps, 'FLOP')} in the run"
    if plan.seconds is not None:
        flops += (
            f": {format_duration(plan.seconds)} on {plan.batches.ranks} x {options.tflops:g} "
            f"TFLOP/s at {options.utilisation:.0%}"
        )
    size = plan.size
    return [
        f"  tokens   {tokens}, padding {step.padding:.0%} ({plan.micro.basis})",
        f"  compute  {flops}",
        f"  model    {quantity(size.parameters)} parameters ({size.parameters:,}), "
        f"{quantity(size.trained)} trained; backbone of {size.backbone.layers} layers, "
        f"{size.trained_layers} trained",
    ]


def _memory(plan: Plan, options: Options) -> list[str]:
    ranks = plan.batches.ranks
    found = [
        f"  memory   GiB per rank, {ranks} ranks; activations of micro-batch "
        f"{plan.batches.micro_batch}: {_gib(plan.activations)}, checkpointed "
        f"{_gib(plan.activations_checkpointed)} (estimate); 'fixed' is everything else",
        "           " + _row("file", RankMemory.__dataclass_fields__, "fixed", "peak", "ckpt"),
    ]
    for name, memory in plan.memory.items():
        values = [_gib(getattr(memory, key)) for key in RankMemory.__dataclass_fields__]
        totals = (
            memory.fixed,
            memory.peak(plan.activations),
            memory.peak(plan.activations_checkpointed),
        )
        found.append("           " + _row(name, values, *map(_gib, totals)))
    found.append(
        f"           this run: {plan.chosen}"
        f"{', checkpointed' if plan.is_checkpointed else ''}, {_gib(plan.peak)}; rank 0's host "
        f"gathers {_gib(plan.checkpoint)} for a checkpoint"
    )
    if plan.advice is not None and options.gpu_gib is not None:
        found.append(f"  advice   {plan.advice.line(options.gpu_gib, options.reserve_gib)}")
    return found


def _disk(plan: Plan) -> list[str]:
    return [
        f"  disk     {item.bytes / 1e9:9.2f} GB  {item.what}: {item.where}" for item in plan.disk
    ]


def _row(name: str, values: Any, *totals: str) -> str:
    return f"{name:<14}" + "".join(f"{value:>10}" for value in [*values, *totals])


def _gib(value: int) -> str:
    return f"{value / GIB:.2f}"


def _list(values: Sequence[int], most: int = 8) -> str:
    if len(values) > most:
        shown = ", ".join(f"{value:,}" for value in values[: most - 1])
        return f"{shown}, … {values[-1]:,} ({len(values)})"
    return ", ".join(f"{value:,}" for value in values)
