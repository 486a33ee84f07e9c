"""UniLMv2's relative position bias: one table, shared by all layers, added to attention scores.

Relative positions fall into 32 buckets, as in T5: 16 per direction; each distance below 8 has its
own bucket, larger distances share buckets that widen logarithmically up to distance 128, and all
distances beyond share the last bucket.

Shape legend: A attention heads, L tokens.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

NUM_BUCKETS = 32
MAX_DISTANCE = 128


def relative_position_bucket(relative: Tensor) -> Tensor:
    """Return the bucket of each relative position.

    Args:
        relative: Integer tensor of any shape, key position minus query position.

    Returns:
        int64 tensor of the same shape, values in ``[0, 32)``: keys after the query (relative > 0)
        are in the upper 16.

    Source:
        UniLMv2 / T5: bidirectional bucketing.
    """
    per_direction = NUM_BUCKETS // 2
    num_exact = per_direction // 2
    distance = relative.abs()
    # Clamped to 1 so that log never sees zero; those entries take the exact branch anyway.
    log_ratio = torch.log(distance.clamp(min=1).float() / num_exact)
    log_ratio = log_ratio / math.log(MAX_DISTANCE / num_exact)
    coarse = num_exact + (log_ratio * (per_direction - num_exact)).long()
    bucket = torch.where(distance < num_exact, distance, coarse.clamp(max=per_direction - 1))
    return bucket.long() + (relative > 0).long() * per_direction


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # if a teacher calls this first, a student still trains on the result
def _buckets_by_offset(length: int) -> Tensor:
    """Return the buckets of positions ``1 - length .. length - 1``.

    They are computed on the CPU, so they are equal on every machine.
    """
    return relative_position_bucket(torch.arange(-(length - 1), length))


class RelativePositionBias(nn.Module):
    """The table (32 buckets x heads, without bias term), expanded to an L x L matrix per head."""

    def __init__(self, num_heads: int):
        """Create a table of zeros, which leaves a backbone's own attention unchanged.

        Args:
            num_heads: A, attention heads of the backbone.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_BUCKETS, num_heads))

    def forward(self, length: int) -> Tensor:
        """Return the bias for texts of ``length`` tokens, for any number of texts.

        A score's bias depends only on key minus query, so 2L - 1 values per head determine the
        whole matrix: row q is the window of these values that starts at L - 1 - q.

        Args:
            length: L.

        Returns:
            ``[A, L, L]`` (query, key) in the dtype of the table.
        """
        buckets = _buckets_by_offset(length).to(self.weight.device)
        by_offset_AO = nn.functional.embedding(buckets, self.weight).transpose(0, 1)
        return by_offset_AO.unfold(1, length, 1).flip(1)
