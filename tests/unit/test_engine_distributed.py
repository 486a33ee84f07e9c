"""Start-up of one process, and what rank 0 does for all."""

import os
import random
import socket
import sys

import numpy as np
import pytest
import torch
from helpers.launch import settings
from helpers.process import run
from helpers.tnr import ROOT
from helpers.toy import ToyTask

from trainer.engine import distributed as module
from trainer.engine.distributed import start
from trainer.errors import CheckpointError, ConfigError, TrainingError
from trainer.recipes.load import from_settings


def config_of(tmp_path, **changes):
    return from_settings(settings(tmp_path / "run", **changes), where="test")


def test_start_seeds_everything_that_a_model_is_built_from(tmp_path):
    drawn = []
    for _ in range(2):
        with start(config_of(tmp_path)):
            numbers = (random.random(), float(np.random.rand()), float(torch.rand(())))
            drawn.append((numbers, ToyTask().state_dict()))
    assert drawn[0][0] == drawn[1][0]
    assert all(torch.equal(value, drawn[1][1][name]) for name, value in drawn[0][1].items())
    with start(config_of(tmp_path, run__seed=4)):
        assert random.random() != drawn[0][0][0]


def test_start_leaves_the_environment_as_it_was(tmp_path):
    before = dict(os.environ)
    with start(config_of(tmp_path)) as distributed:
        assert (distributed.rank, distributed.world_size, distributed.is_main) == (0, 1, True)
        assert distributed.zero_stage is None
    assert dict(os.environ) == before


def test_accumulation_is_derived(tmp_path):
    with start(config_of(tmp_path, run__micro_batch=2)) as distributed:
        assert distributed.accumulation == 4
        assert distributed.accelerator.gradient_accumulation_steps == 4


def test_batch_of_several_processes_is_checked_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="3 ranks"), start(config_of(tmp_path)):
        pass


def test_wrong_deepspeed_file_is_refused_before_anything_starts(tmp_path):
    with (
        pytest.raises(ConfigError, match="zero7"),
        start(config_of(tmp_path, run__deepspeed="zero7")),
    ):
        pass


def test_cores_are_shared_among_the_ranks_of_a_machine(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    module._share_cores()
    assert given == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    module._share_cores()
    assert given == [2]


def test_result_and_error_of_rank_zero_reach_the_caller(tmp_path):
    def fail():
        raise CheckpointError("torn")

    with start(config_of(tmp_path)) as distributed:
        assert distributed.from_main(lambda: 7) == 7
        with pytest.raises(CheckpointError, match="torn"):
            distributed.from_main(fail)


def test_errors_travel_as_themselves_or_by_their_words():
    own = module._portable(CheckpointError("torn"))
    assert type(own) is CheckpointError
    assert str(own) == "torn"
    other = module._portable(KeyError("x"))
    assert type(other) is TrainingError
    assert "KeyError: 'x'" in str(other)


LEAVING = """
import atexit
from trainer.recipes.load import from_settings
from trainer.engine.distributed import leave, start

atexit.register(print, "torn down")
with start(from_settings({settings!r}, where="test")):
    pass
leave(75)
"""


@pytest.mark.parametrize("in_group", [False, True])
def test_rank_leaves_without_teardown_and_with_its_exit_code(tmp_path, in_group):
    """Gloo's threads may still need the interpreter, which a torn down one answers with abort."""
    code = LEAVING.format(settings=settings(tmp_path / "run", run__micro_batch=8))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    rank |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables = {"PYTHONPATH": str(ROOT)} | (rank if in_group else {})
    done = run([sys.executable, "-c", code], timeout=120, cwd=tmp_path, **variables)
    assert done.returncode == 75, done.stderr
    assert ("torn down" in done.stdout) is not in_group


def test_compiled_layers_are_refused_with_zero3(tmp_path):
    config = config_of(tmp_path, run__compile=True, run__deepspeed="zero3")
    with pytest.raises(ConfigError, match=r"run\.compile does not work with ZeRO-3"), start(config):
        pass
