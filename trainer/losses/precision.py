"""Losses are computed in fp32 at least, whatever precision the model ran in."""

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Half precision to fp32; wider tensors as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
