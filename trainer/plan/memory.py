"""Bytes of weights, gradients and optimizer on one rank, way by way, as this trainer holds them.

Weights, gradients and Adam's moments are fp32 in every precision: autocast is inside the forward
pass. DeepSpeed copies this rank's part of the weights all the same at stages 1 and 2; stage 3 lets
Adam work on the part itself, but keeps a spare gradient as large as its largest group. With P
parameters, T of them trained, W ranks, m moments (2, with AMSGrad 3), in units of 4 bytes at the
end of the last backward pass:

    way     weights  copy     gradients        moments  buffers
    DDP     P                 T                m T      T (its buckets, W > 1)
    zero0   P                 T                m T      bucket (flattened for the all-reduce, W > 1)
    zero1   P        T / W    T + T / W        m T / W  bucket
    zero2   P        T / W    T / W            m T / W  bucket
    zero3   P / W             T / W            m T / W  bucket, and the largest group's T / W

``bucket`` is ``reduce_bucket_size``, twice with ``overlap_comm``; the all-gather after a step works
in place. Gathered weights of stage 3 come on top, at most ``stage3_max_live_parameters``, and with
ZeRO++ a second copy P / hpz. Left out is that stages 1 and 2 keep the gradient of a tensor that
lies across the border of two ranks' parts whole: at most one largest tensor a parameter group.
Offloading moves copy, moments and update to the host: see :func:`host_bytes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.plan.sizes import TaskSize

FP32 = 4

# DeepSpeed's own values of settings that a file leaves out; the first also bounds what stage 0
# flattens at once.
_BUCKET = 500_000_000
_MAX_LIVE = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Way:
    """How ranks share the state of a run: what a DeepSpeed file says about memory."""

    name: str
    """Name of the file, or ``ddp``."""
    stage: int | None = None
    """ZeRO stage; None is plain or DDP."""
    bucket: int = _BUCKET
    """Elements of a communication buffer."""
    buckets: int = 1
    """How many of them there are."""
    max_live: int = _MAX_LIVE
    """Gathered weights that stage 3 keeps at most, in elements."""
    hpz: int = 1
    """Ranks among which ZeRO++ keeps a second copy of the weights; 1: there is none."""
    offload_optimizer: bool = False
    """Moments and their arithmetic are on the host."""
    offload_param: bool = False
    """Sharded weights are on the host."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank's device, or on the only one."""

    weights: int
    """What the model computes with."""
    copy: int = 0
    """ZeRO's second copy of this rank's part of the weights."""
    gradients: int
    """At the end of the last backward pass."""
    moments: int = 0
    """Adam's."""
    buffers: int = 0
    """Of communication, and stage 3's spare gradient."""
    gathered: int = 0
    """Weights that stage 3 has brought together, at most."""
    host: int = 0
    """On the host, for this rank."""
    update: int = 0
    """What the update takes beside all that for a moment, when activations are gone."""

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer at the end of the last backward pass."""
        return self.weights + self.copy + self.gradients + self.moments

    @property
    def fixed(self) -> int:
        """What a step takes however small its micro-batch is."""
        return self.peak(0)

    def peak(self, activations: int) -> int:
        """The most at any time of a step: in the backward pass, or in the update after it."""
        return self.state + self.buffers + max(self.gathered + activations, self.update)


def way_of(name: str, content: Mapping[str, Any] | None) -> Way:
    """What a DeepSpeed file says about memory.

    Args:
        name: Its name.
        content: The file; None for DDP.
    """
    if content is None:
        return Way(name=name)
    zero = content.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    overlaps = bool(zero.get("overlap_comm", False)) and stage in (1, 2)
    return Way(
        name=name,
        stage=stage,
        bucket=int(zero.get("reduce_bucket_size", _BUCKET)),
        buckets=2 if overlaps else 1,
        max_live=int(zero.get("stage3_max_live_parameters", _MAX_LIVE)),
        hpz=int(zero.get("zero_hpz_partition_size", 1)),
        offload_optimizer=_is_offloaded(zero, "offload_optimizer"),
        offload_param=_is_offloaded(zero, "offload_param"),
    )


def rank_memory(size: TaskSize, way: Way, ranks: int, *, moments: int = 2) -> RankMemory:
    """Bytes that one rank holds.

    Args:
        size: The task.
        way: How ranks share it.
        ranks: W.
        moments: Tensors of Adam for a parameter: 2, 3 with AMSGrad.
    """
    P, T = size.parameters * FP32, size.trained * FP32
    if not way.stage:
        reduced = (T if way.stage is None else min(T, _BUCKET * FP32)) if ranks > 1 else 0
        return RankMemory(weights=P, gradients=T, moments=moments * T, buffers=reduced, update=T)
    part, bucket = -(-T // ranks), way.buckets * way.bucket * FP32
    host = host_bytes(size, way, ranks, moments=moments)
    weights, gathered, spare = P, 0, 0
    if way.stage == 3:
        weights = 0 if way.offload_param else -(-P // ranks)
        weights += -(-P // way.hpz) if way.hpz > 1 else 0
        gathered = min(P, max(way.max_live, size.backbone.largest) * FP32)
        spare = -(-_largest_group(size) * FP32 // ranks)
    if way.offload_optimizer:
        gradients = T if way.stage == 1 else part  # at most: they leave while others arrive
        return RankMemory(
            weights=weights, gradients=gradients, buffers=bucket, gathered=gathered, host=host
        )
    # Stages 1 and 2 lay gradients end to end at the step, and Adam needs as much again; stage 1
    # has let go of the whole gradient by then.
    laid = {1: max(0, 2 * part - T), 2: 2 * part, 3: spare}[way.stage]
    return RankMemory(
        weights=weights,
        copy=part if way.stage < 3 else 0,
        gradients=T + part if way.stage == 1 else part,
        moments=moments * part,
        buffers=bucket + spare,
        gathered=gathered,
        host=host,
        update=laid,
    )


def host_bytes(size: TaskSize, way: Way, ranks: int, *, moments: int = 2) -> int:
    """Host memory of one rank's offloaded state, in bytes.

    ``offload_optimizer``: the second copy of the weights, the moments, the gradient of the update
    and the gradient that accumulates; stages 1 and 2 also stage the weights on their way back.
    ``offload_param``: this rank's part of all weights.
    """
    if not way.stage:
        return 0
    P, part = size.parameters * FP32, -(-size.trained * FP32 // ranks)
    held = 0
    if way.offload_optimizer:
        held += (3 + moments + (way.stage < 3)) * part
    if way.offload_param and way.stage == 3:
        held += -(-P // ranks)
    return held


def checkpoint_bytes(size: TaskSize, *, moments: int = 2) -> int:
    """Bytes of a checkpoint: all weights, and the moments of those that are trained.

    So much host memory it also takes on rank 0, where it is brought together before it is written.
    """
    return FP32 * (size.parameters + moments * size.trained)


def _largest_group(size: TaskSize) -> int:
    return max(size.trained_backbone, size.trained - size.trained_backbone)


def _is_offloaded(zero: Mapping[str, Any], part: str) -> bool:
    return (zero.get(part) or {}).get("device", "none") != "none"
