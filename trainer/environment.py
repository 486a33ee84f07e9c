"""Environment variables that this project's processes set before torch is loaded.

This module does not import torch.

Libraries read these variables when they are loaded, so every started process calls :func:`prepare`
first; its child processes inherit them. Variables set by the user stay.
"""

import os
from collections.abc import MutableMapping

SPIN_COUNT = "3000"
"""Number of turns that a thread of GNU's OpenMP, which torch ships on Linux, waits actively for
other threads before it sleeps.

By default, a thread waits actively for milliseconds. If another program computes, a thread that is
waited for may have no core meanwhile, and a step takes many times as long.
``tests/benchmarks/contention.py`` measures which value to choose."""

BLOCK_TIME = "0"
"""The same in milliseconds, for the OpenMP of Intel and LLVM, which other builds of torch use."""

KERNELS = "64"
"""Number of compiled kernels that oneDNN keeps, one for every shape. Its default of 1,024 takes
gigabytes if every micro-batch has its own shape; a step needs a few dozen."""


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that torch's libraries read, unless the user has set them.

    Args:
        environment: Environment of this process, or of a process to be started.
    """
    environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    if "OMP_WAIT_POLICY" not in environment:  # set by the user for all of them
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        environment.setdefault("KMP_BLOCKTIME", BLOCK_TIME)
