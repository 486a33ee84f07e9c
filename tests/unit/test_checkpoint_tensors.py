"""Weights and Adam state by name, and what may differ at a resume."""

import json

import pytest
import torch
from helpers.toy import ToyTask
from safetensors.torch import load_file
from torch import nn

from shards.files import sha256_file
from trainer.checkpoint.hashed import write_hashed_json
from trainer.checkpoint.resume import MAY_CHANGE, check_same_run
from trainer.checkpoint.tensors import MODEL, load_model, persistent_buffers, write_tensors
from trainer.config.flat import to_dict
from trainer.config.schema import RunConfig
from trainer.errors import CheckpointError
from trainer.recipes.load import known_keys
from trainer.tasks.finetune.task import FinetuneConfig


def stored(task):
    model = {name: p.detach().clone() for name, p in task.named_parameters()}
    return model | persistent_buffers(task)


def test_only_persistent_buffers_count():
    assert set(persistent_buffers(ToyTask())) == {"model.scale"}


def test_weights_round_trip_to_the_bit(tmp_path):
    torch.manual_seed(1)
    first, second = ToyTask(), ToyTask()
    first.model.scale.fill_(2.5)
    write_tensors(tmp_path, stored(first), {})
    load_model(tmp_path, second)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path):
    def tied():
        module = nn.Module()
        module.a, module.b = nn.Linear(3, 3), nn.Linear(3, 3)
        module.b.weight = module.a.weight
        return module

    first, second = tied(), tied()
    write_tensors(tmp_path, stored(first), {})
    load_model(tmp_path, second)
    assert second.a.weight is second.b.weight
    assert torch.equal(second.b.weight, first.a.weight)


def test_files_are_safetensors_and_their_hashes_are_those_of_the_bytes_on_disk(tmp_path):
    """Every type and shape, against the package's own reader and a second reading of the file."""
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)
    kinds += (torch.int16, torch.int8)
    tensors = {str(kind): torch.arange(7).to(kind) for kind in (*kinds, torch.uint8)}
    tensors |= {"bool": torch.tensor([True, False, True]), "scalar": torch.tensor(2.5)}
    tensors |= {"empty": torch.empty(0, 3), "ünï": torch.randn(3, 5, 2)}
    tensors["large"] = torch.randn(3, 1_000_003)  # more than one block
    entries = write_tensors(tmp_path, tensors, {})
    read = load_file(tmp_path / MODEL)
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
    with (tmp_path / MODEL).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    assert length % 8 == 0  # so that every tensor is aligned, the widest first
    for name, entry in header.items():
        assert entry["data_offsets"][0] % tensors[name].element_size() == 0
    for name, entry in entries.items():
        path = tmp_path / name
        assert entry == {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    with pytest.raises(ValueError, match="contiguous: False"):
        write_tensors(tmp_path, {"t": torch.zeros(2, 3).T}, {})


def test_other_model_is_refused(tmp_path):
    task = ToyTask()
    tensors = stored(task)
    tensors["model.user.pad_doc"] = torch.zeros(3)
    write_tensors(tmp_path, tensors, {})
    with pytest.raises(CheckpointError, match=r"pad_doc has shape \(3,\)"):
        load_model(tmp_path, task)
    del tensors["model.user.pad_doc"]
    tensors["stranger"] = torch.zeros(3)
    write_tensors(tmp_path, tensors, {})
    with pytest.raises(CheckpointError, match=r"pad_doc.*stranger"):
        load_model(tmp_path, task)
    del tensors["stranger"]
    write_tensors(tmp_path, tensors, {})
    with pytest.raises(
        CheckpointError, match=r"it lacks \['model\.user\.pad_doc'\] \(1\) and has \[\]"
    ):
        load_model(tmp_path, task)


def test_what_json_lacks_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_hashed_json(tmp_path / "state.json", {"loss": float("nan")})


def test_settings_that_may_change_exist():
    assert set(known_keys()) >= MAY_CHANGE


def test_what_may_change_and_what_may_not():
    before = to_dict(FinetuneConfig(run=RunConfig(max_steps=5)))
    longer = FinetuneConfig(run=RunConfig(max_steps=9, micro_batch=8))
    check_same_run(before, longer, "data", "data")
    other = FinetuneConfig(run=RunConfig(seed=1, global_batch=64))
    with pytest.raises(CheckpointError, match=r"run\.global_batch was 32 and is now 64; run\.seed"):
        check_same_run(before, other, "data", "data")
    with pytest.raises(CheckpointError, match="other data"):
        check_same_run(before, FinetuneConfig(run=RunConfig(max_steps=5)), "data", "others")
