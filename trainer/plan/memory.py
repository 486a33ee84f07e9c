"""Bytes of weights, gradients and optimizer on one rank, way by way, as this trainer holds them.

Weights, gradients and Adam's moments are fp32 in every precision (autocast is inside the forward
pass), so ZeRO needs no second copy of the weights at stage 3; at stages 1 and 2 DeepSpeed copies
this rank's part all the same. With P parameters, T of them trained, W ranks, m moments (2, with
AMSGrad 3), in units of 4 bytes at the end of the last backward pass:

    way     weights  master  gradients        moments  buffers
    DDP     P                T                m T      T (its buckets, W > 1)
    zero0   P                T                m T      T (flattened for the all-reduce, W > 1)
    zero1   P        T / W   T + T / W        m T / W  bucket
    zero2   P        T / W   T / W            m T / W  bucket
    zero3   P / W            T / W            m T / W  bucket, and the largest group's T / W

``bucket`` is ``reduce_bucket_size``, twice with ``overlap_comm``. ZeRO-3 also keeps gathered
weights alive, at most ``stage3_max_live_parameters``; ZeRO++ keeps its second copy P / hpz.
Offloading moves moments, master and gradients to the host: see :func:`host_bytes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.plan.sizes import TaskSize

FP32 = 4

# DeepSpeed's own values of settings that a file leaves out.
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
    master: int
    """ZeRO's copy of this rank's part of the weights."""
    gradients: int
    """At the end of the last backward pass."""
    moments: int
    """Adam's."""
    buffers: int
    """Of communication, and stage 3's spare gradient."""
    gathered: int
    """Weights that stage 3 has brought together, at most."""
    host: int
    """On the host, for this rank."""
    update: int
    """What Adam needs beside it for a moment, when activations are gone."""

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer, as counted in tensors between steps' ends."""
        return self.weights + self.master + self.gradients + self.moments

    def peak(self, activations: int) -> int:
        """The most at any time of a step: in the backward pass, or in the update after it."""
        backward = self.buffers + self.gathered + activations
        return self.state + max(backward, self.update)


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
        reduced = T if ranks > 1 else 0
        return RankMemory(
            weights=P, master=0, gradients=T, moments=moments * T, buffers=reduced, gathered=0,
            host=0, update=T,
        )  # fmt: skip
    part = -(-T // ranks)
    gradients = T + part if way.stage == 1 else part
    master, optimizer, buffers, update = part, moments * part, way.buckets * way.bucket * FP32, part
    weights, gathered = P, 0
    if way.stage == 3:
        weights, master = -(-P // ranks), 0
        gathered = min(P, way.max_live * FP32)
        buffers += _largest_group(size) * FP32 // ranks
        if way.hpz > 1:
            weights += -(-P // way.hpz)
        if way.offload_param:
            weights = 0
    if way.offload_optimizer:
        gradients = T if way.stage == 1 else 0
        # One tensor's gradient on its way to the host.
        buffers = way.buckets * way.bucket * FP32 + size.backbone.largest * FP32
        master = optimizer = update = 0
    return RankMemory(
        weights=weights,
        master=master,
        gradients=gradients,
        moments=optimizer,
        buffers=buffers,
        gathered=gathered,
        host=host_bytes(size, way, ranks, moments=moments),
        update=update,
    )


def host_bytes(size: TaskSize, way: Way, ranks: int, *, moments: int = 2) -> int:
    """Host memory of one rank's offloaded state, in bytes.

    ``offload_optimizer``: the master copy, the moments, the gradient of the update and the gradient
    that accumulates; stages 1 and 2 also stage the weights on their way back. ``offload_param``:
    this rank's part of all weights.
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
