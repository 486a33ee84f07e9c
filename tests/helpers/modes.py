"""The ways to train that must all mean the same, as DeepSpeed files that shard whatever is there.

The models of the tests are smaller than the sizes below which DeepSpeed keeps parameters whole.
"""

import json
from pathlib import Path
from typing import Any

_CPU = {"device": "cpu"}
_ZERO3 = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "memory_efficient_linear": False,
}
MODES: dict[str, dict[str, Any] | None] = {
    "torch": None,
    "zero0": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": _ZERO3,
    "zero1_offload": {"stage": 1, "offload_optimizer": _CPU},
    "zero2_offload": {"stage": 2, "offload_optimizer": _CPU},
    "zero3_offload": {**_ZERO3, "offload_optimizer": _CPU, "offload_param": _CPU},
    "zero3_hpz": {**_ZERO3, "zero_hpz_partition_size": 2},
}
"""``zero_optimization`` by mode; ``torch`` is one process, or DDP."""


def deepspeed_file(folder: Path, mode: str) -> str | None:
    """Write the file of a mode, for ``run.deepspeed``; None for torch's own."""
    zero = MODES[mode]
    if zero is None:
        return None
    path = folder / f"deepspeed-{mode}.json"  # no name of a row: its results go beside
    path.write_text(json.dumps({"zero_optimization": zero}))
    return str(path)
