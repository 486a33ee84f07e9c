"""Evaluation on several ranks is that of one process, to the last bit."""

import json
from pathlib import Path

import numpy as np
import torch
from helpers import evaluate_shared
from helpers.launch import torchrun
from helpers.world import make_world
from safetensors import safe_open

from shards.files import sha256_file
from trainer.evaluate.metrics import METRIC_NAMES

TIMES = ("encode_s", "score_s", "ranks")


def test_two_ranks_give_the_numbers_of_one(tmp_path: Path):
    world = make_world(tmp_path)
    spec = {
        "export": world.teacher("finetune", 1),
        "articles": str(world.articles.path),
        "clicks": str(world.impressions.path),
    }
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        evaluate_shared.run(**spec, out=alone)
    finally:
        torch.set_num_threads(threads)
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"out": str(shared)}))
    done = torchrun(tmp_path, Path(evaluate_shared.__file__), 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("AUC") == 1  # rank 0 alone prints and writes
    assert "finetune-1: 60 impressions" in done.stdout

    records = [json.loads((folder / "eval.json").read_text()) for folder in (alone, shared)]
    assert [record["speed"]["ranks"] for record in records] == [1, 2]
    for record in records:
        for name in TIMES:
            del record["speed"][name]
    assert records[0] == records[1]
    name = records[0]["impressions_file"]
    assert (alone / name).read_bytes() == (shared / name).read_bytes()
    prediction = "prediction.zip"
    assert (alone / prediction).read_bytes() == (shared / prediction).read_bytes()

    check_shares(*(np.load(shared / f"rank-{rank}.npz") for rank in (0, 1)))
    expected = np.load(alone / "rank-0.npz")
    for rank in (0, 1):
        found = np.load(shared / f"rank-{rank}.npz")
        np.testing.assert_array_equal(found["news"], expected["news"])
        for metric in METRIC_NAMES:
            np.testing.assert_array_equal(found[f"{metric}_n"], expected[f"{metric}_n"])
        assert len(found["scores"]) == (len(expected["scores"]) if rank == 0 else 0)
    np.testing.assert_array_equal(np.load(shared / "rank-0.npz")["scores"], expected["scores"])
    check_impressions_file(alone / name, records[0], world)


def check_shares(first, second) -> None:
    """Each rank did a part of the work, and nothing was done twice."""
    own = [part["own_impressions"].tolist() for part in (first, second)]
    assert sorted(own[0] + own[1]) == list(range(60))
    assert min(map(len, own)) > 15
    tokens = [int(part["own_tokens"]) for part in (first, second)]
    assert max(tokens) < 2 * min(tokens)


def check_impressions_file(path: Path, record: dict, world) -> None:
    """Its rows, users and means are those of the record and the log."""
    assert record["impressions_sha256"] == sha256_file(path)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "1", "clicks": world.impressions.fingerprint}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(tensors) == {"row", "user", *METRIC_NAMES}
    assert (tensors["row"].dtype, tensors["user"].dtype) == (np.int64, np.int32)
    assert len(tensors["row"]) == record["counts"]["impressions"]
    for name in METRIC_NAMES:
        assert tensors[name].mean() == record["metrics"][name]
    numbers: dict[str, int] = {}
    users = [numbers.setdefault(sample["user"], len(numbers)) for sample in world.impressions]
    assert tensors["user"].tolist() == [users[row] for row in tensors["row"].tolist()]
