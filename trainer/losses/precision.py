"""Precision of losses: fp32 at least, whatever precision the model used."""

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Convert half precision to fp32; keep wider tensors."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
