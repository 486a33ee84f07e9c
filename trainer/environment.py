"""What this project's processes set in their environment before torch is loaded. No torch.

Libraries read these variables when they are loaded, so every process that is started calls
:func:`prepare` first; processes that it starts inherit them. What the user has set stays.
"""

import os
from collections.abc import MutableMapping

SPIN_COUNT = "3000"
"""Turns that a thread of GNU's OpenMP, which torch ships on Linux, waits awake for its fellows
before it sleeps.

By default a thread waits awake for milliseconds. Where another program computes, a fellow may be
without a core meanwhile, and a step takes many times as long.
``tests/benchmarks/contention.py`` measures what to choose.
"""

BLOCK_TIME = "0"
"""Milliseconds of the same in the OpenMP of Intel and LLVM, which other builds of torch use."""

KERNELS = "64"
"""Compiled kernels that oneDNN keeps, one for every shape that it has seen. Its own 1,024 are
gigabytes where every micro-batch has its own shape; a step needs a few dozen."""


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what torch's libraries read when they are loaded, unless the user has set it.

    Args:
        environment: Of this process, or of one that is to be started.
    """
    environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    if "OMP_WAIT_POLICY" not in environment:  # the user's word on how all of them wait
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        environment.setdefault("KMP_BLOCKTIME", BLOCK_TIME)
