"""Process start-up: ranks, device, seeds, process group, and small exchanges among ranks.

:func:`start` is called before the model is built, so that every rank builds the same model.
"""

import contextlib
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from trainer.config.schema import TrainConfig
from trainer.config.validate import check_batch, check_memory
from trainer.engine.deepspeed_file import (
    check_by_deepspeed,
    check_compiler,
    check_compiler_of_layers,
    check_partition,
    complete_deepspeed_config,
    read_deepspeed_file,
    stage_of,
)
from trainer.engine.extensions import remove_stale_segments, use_batons, use_own_folder
from trainer.engine.rendezvous import check_master_port
from trainer.engine.watchdog import collective_timeout_s, ends_within, watched_start
from trainer.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

T = TypeVar("T")

CLOSE_S = 60.0
"""Seconds that leaving the process group may take before the process is ended."""

_left_group = False
"""Whether this process was in a process group; see :func:`leave`."""


@dataclass(kw_only=True)
class Distributed:
    """The current process among the processes of a run.

    Attributes:
        accelerator: Accelerate's object, with gradient accumulation and DeepSpeed already set.
        rank: Rank of this process, from 0.
        world_size: Number of processes.
        device: Device on which this process computes.
        accumulation: Micro-batches per rank in an optimizer step.
        deepspeed: The complete DeepSpeed configuration; None without DeepSpeed.
    """

    accelerator: "Accelerator"
    rank: int
    world_size: int
    device: "torch.device"
    accumulation: int
    deepspeed: dict[str, Any] | None
    control: Any = None
    """Process group for flags and objects; on the CPU even if gradients go through NCCL."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    @property
    def zero_stage(self) -> int | None:
        """ZeRO stage; None without DeepSpeed."""
        return None if self.deepspeed is None else stage_of(self.deepspeed)

    def maximum(self, values: list[int]) -> list[int]:
        """Return the element-wise maximum of a few integers over all ranks."""
        if self.world_size == 1:
            return values
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return [int(value) for value in tensor]

    def mean(self, values: list[float]) -> list[float]:
        """Return the element-wise mean over all ranks, in double precision."""
        if self.world_size == 1:
            return values
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return [float(value) for value in tensor / self.world_size]

    def from_main(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0; return its result or error on every rank.

        The other ranks wait meanwhile, so the call is also the barrier around rank 0's file work.

        Raises:
            TrainingError: On the other ranks, if rank 0 failed with an error of another library.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except Exception as error:
                if self.world_size > 1:
                    self._share([None, _portable(error)])
                raise
        if self.world_size > 1:
            outcome = self._share(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _share(self, objects: list[Any]) -> list[Any]:
        import torch.distributed as dist

        dist.broadcast_object_list(objects, src=0, group=self.control)
        return objects

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.maximum([0])

    def close(self) -> None:
        """Leave the process group and reset Accelerate's state, so that another run may start."""
        from accelerate.state import AcceleratorState

        close_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


@contextlib.contextmanager
def start(config: TrainConfig) -> Iterator[Distributed]:
    """Start this process's part of a run before the task is built; a context manager.

    The ranks come from the environment (torchrun, or one Slurm task per rank); without them, the
    run has one process. Python, NumPy and torch are seeded with ``run.seed``, the same on every
    rank.

    Args:
        config: Configuration of the run; its batch arithmetic and DeepSpeed file are checked here.

    Yields:
        The current process, which leaves the process group at the end of the block.

    Raises:
        ConfigError: Model or batch exceed this machine's memory, the global batch does not divide,
            the DeepSpeed file is wrong, or DeepSpeed cannot build what it needs.
        TrainingError: MASTER_PORT is taken.
    """
    check_memory(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = check_batch(config, world_size)
    deepspeed = None
    if config.run.deepspeed is not None:
        deepspeed = complete_deepspeed_config(
            read_deepspeed_file(config.run.deepspeed),
            micro_batch=config.run.micro_batch,
            accumulation=accumulation,
            world_size=world_size,
            max_grad_norm=config.optimizer.max_grad_norm,
        )
    check_master_port()
    use_own_folder()
    import torch

    has_gpu = torch.cuda.is_available()
    if deepspeed is not None:
        check_partition(deepspeed, world_size=world_size, has_gpu=has_gpu)
        if config.run.compile and stage_of(deepspeed) == 3:
            raise ConfigError(
                "run.compile does not work with ZeRO-3, which gathers and releases the weights "
                "of a layer piece by piece around each call: leave one of them out, or use zero2"
            )
    if not has_gpu:
        _share_cores()
        if deepspeed is not None:
            check_compiler()
            _find_ninja()
            if os.environ.get("LOCAL_RANK", "0") == "0":
                remove_stale_segments()
        if config.run.compile:
            check_compiler_of_layers()
    alone = {} if deepspeed is None or "RANK" in os.environ else _environment_of_one()
    os.environ |= alone
    limit_s = config.run.hang_timeout_s
    try:
        with watched_start(int(os.environ.get("RANK", "0")), limit_s) as note_compiling:
            if config.run.deepspeed is not None:
                check_by_deepspeed(config.run.deepspeed)
                use_batons(note_compiling)
            distributed = _start_accelerate(deepspeed, accumulation, limit_s)
        try:
            _seed(config.run.seed)
            yield distributed
        finally:
            distributed.close()
    finally:
        for name in alone:
            os.environ.pop(name, None)


def close_group() -> None:
    """Leave the process group, if any; the process then ends by :func:`leave`."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        global _left_group
        _left_group = True
        with ends_within(CLOSE_S):
            dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End the process with an exit code; the last call of a command's main function.

    A process that was in a process group skips Python's own teardown. Gloo's threads outlive
    ``destroy_process_group`` (DDP and DeepSpeed keep the group), and a thread that releases the
    last collective's tensor needs the interpreter's lock. A thread that gets the lock during the
    teardown aborts the process: trained, saved, exit code -6 (seen in 5 of 170 starts).
    """
    if _left_group:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _start_accelerate(
    deepspeed: dict[str, Any] | None, accumulation: int, hang_timeout_s: float
) -> Distributed:
    import torch
    import torch.distributed as dist
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    has_gpu = torch.cuda.is_available()
    timeout = timedelta(seconds=collective_timeout_s(hang_timeout_s))
    # find_unused_parameters keeps DDP from regrouping its buckets after the first step, so that a
    # resumed run sums gradients in the same order as an uninterrupted run.
    handlers: list[Any] = [
        DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    ]
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    # DeepSpeed calls collectives by names that newer torch has renamed: four warnings per rank.
    warnings.filterwarnings("ignore", category=FutureWarning, message="`torch.distributed")
    if "RANK" in os.environ:
        # Name the backend: Accelerate takes a DeepSpeed run on CPUs for a single process.
        backend = "nccl" if has_gpu else "gloo"
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timeout))
    accelerator = Accelerator(
        cpu=not has_gpu and deepspeed is None,
        mixed_precision="no",
        gradient_accumulation_steps=accumulation,
        deepspeed_plugin=None if deepspeed is None else _deepspeed_plugin(deepspeed),
        kwargs_handlers=handlers,
    )
    if deepspeed is not None:
        _forget_deepspeed_in_transformers(accelerator)
    is_parallel = dist.is_available() and dist.is_initialized()
    control = None
    if is_parallel and has_gpu:
        control = dist.new_group(backend="gloo", timeout=timeout)
    return Distributed(
        accelerator=accelerator,
        rank=dist.get_rank() if is_parallel else 0,
        world_size=dist.get_world_size() if is_parallel else 1,
        device=accelerator.device,
        accumulation=accumulation,
        deepspeed=deepspeed,
        control=control,
    )


def _deepspeed_plugin(deepspeed: dict[str, Any]) -> Any:
    import logging

    from accelerate.utils import DeepSpeedPlugin
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    return DeepSpeedPlugin(hf_ds_config=dict(deepspeed), zero3_init_flag=False)


def _forget_deepspeed_in_transformers(accelerator: "Accelerator") -> None:
    """Keep transformers from building models in ZeRO-3 shards; ours are sharded later."""
    from transformers.integrations import unset_hf_deepspeed_config

    accelerator.deepspeed_plugin.dschf = None
    unset_hf_deepspeed_config()


def _environment_of_one() -> dict[str, str]:
    """Return a launcher's variables for one process; DeepSpeed always needs a process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _share_cores() -> None:
    """Divide this machine's cores among its ranks, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, len(os.sched_getaffinity(0)) // ranks_here)
    torch.set_num_threads(threads)


def _find_ninja() -> None:
    """Put the virtual environment's ninja on the path, where torch looks for it."""
    folder = Path(sys.executable).parent
    path = os.environ.get("PATH", "")
    if (folder / "ninja").exists() and str(folder) not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([path, str(folder)]) if path else str(folder)


def _seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent to other ranks; wrap errors of other libraries."""
    from shards.errors import TinyNewsRecError

    if isinstance(error, TinyNewsRecError):
        return type(error)(str(error))
    return TrainingError(f"rank 0 failed: {type(error).__name__}: {error}")
