"""Bytes of weights, gradients and optimizer on one rank, for each way of sharing them.

Weights, gradients and Adam's moments are fp32 in every precision, because autocast is inside the
forward pass. DeepSpeed still copies this rank's part of the weights at stages 1 and 2; at stage 3,
Adam works on the part itself, but DeepSpeed keeps a spare gradient as large as its largest group.
With P parameters, T of them trained, W ranks, m moments (2, with AMSGrad 3), in units of 4 bytes at
the end of the last backward pass:

    way     weights  copy     gradients        moments  buffers
    DDP     P                 T                m T      T (its buckets, W > 1)
    zero0   P                 T                m T      bucket (flattened for the all-reduce, W > 1)
    zero1   P        T / W    T + T / W        m T / W  bucket
    zero2   P        T / W    T / W            m T / W  bucket
    zero3   P / W             T / W            m T / W  bucket, and the largest group's T / W

``bucket`` is ``reduce_bucket_size``, twice with ``overlap_comm``; the all-gather after a step works
in place. Gathered weights of stage 3 are added, at most ``stage3_max_live_parameters``, and with
ZeRO++ a second copy P / hpz. One thing is left out: stages 1 and 2 keep the whole gradient of a
tensor that crosses the border of two ranks' parts, at most one largest tensor per parameter group.
Offloading moves copy, moments and update to the host: see :func:`host_bytes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.plan.sizes import TaskSize

FP32 = 4

# DeepSpeed's defaults of settings that a file leaves out; the first also limits what stage 0
# flattens at once.
_BUCKET = 500_000_000
_MAX_LIVE = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of sharing a run's state among ranks: the memory settings of a DeepSpeed file."""

    name: str
    """Name of the file, or ``ddp``."""
    stage: int | None = None
    """ZeRO stage; None means one process or DDP."""
    bucket: int = _BUCKET
    """Elements of a communication buffer."""
    buckets: int = 1
    """Number of these buffers."""
    max_live: int = _MAX_LIVE
    """Largest number of gathered weights that stage 3 keeps, in elements."""
    hpz: int = 1
    """Ranks among which ZeRO++ keeps a second copy of the weights; 1 means no copy."""
    offload_optimizer: bool = False
    """Whether moments and their arithmetic are on the host."""
    offload_param: bool = False
    """Whether sharded weights are on the host."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on the device of one rank."""

    weights: int
    """Weights that the model computes with."""
    copy: int = 0
    """ZeRO's second copy of this rank's part of the weights."""
    gradients: int
    """Gradients at the end of the last backward pass."""
    moments: int = 0
    """Adam's moments."""
    buffers: int = 0
    """Communication buffers, and stage 3's spare gradient."""
    gathered: int = 0
    """Largest size of weights that stage 3 has gathered."""
    host: int = 0
    """Bytes on the host for this rank."""
    update: int = 0
    """Temporary bytes of the update, when activations are gone."""

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer at the end of the last backward pass."""
        return self.weights + self.copy + self.gradients + self.moments

    @property
    def fixed(self) -> int:
        """Bytes of a step that do not depend on its micro-batch."""
        return self.peak(0)

    def peak(self, activations: int) -> int:
        """Return a step's peak, in the backward pass or in the update."""
        return self.state + self.buffers + max(self.gathered + activations, self.update)


def way_of(name: str, content: Mapping[str, Any] | None) -> Way:
    """Return the memory settings of a DeepSpeed file.

    Args:
        name: Name of the file.
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
    """Return the bytes that one rank holds.

    Args:
        size: The task.
        way: How ranks share the state.
        ranks: Number of ranks, W.
        moments: Adam's tensors per parameter: 2, or 3 with AMSGrad.
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
        gradients = T if way.stage == 1 else part  # at most: some leave while others arrive
        return RankMemory(
            weights=weights, gradients=gradients, buffers=bucket, gathered=gathered, host=host
        )
    # Stages 1 and 2 concatenate gradients at the step, and Adam needs the same size again; stage 1
    # has released the whole gradient by then.
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
    """Return the host memory of one rank's offloaded state in bytes.

    With ``offload_optimizer``: the second copy of the weights, the moments, the gradient of the
    update and the accumulated gradient; stages 1 and 2 also stage the weights on their way back.
    With ``offload_param``: this rank's part of all weights.
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
    """Return the bytes of a checkpoint: all weights, and the moments of trained weights.

    Rank 0 needs the same amount of host memory, in which the checkpoint is gathered before it is
    written.
    """
    return FP32 * (size.parameters + moments * size.trained)


def _largest_group(size: TaskSize) -> int:
    return max(size.trained_backbone, size.trained - size.trained_backbone)


def _is_offloaded(zero: Mapping[str, Any], part: str) -> bool:
    return (zero.get(part) or {}).get("device", "none") != "none"
