"""Script: what weights, gradients and optimizer take on this rank, way by way, as tensors.

Usage: measure_memory.py SPEC.json, where SPEC has ``settings`` of a run without data, ``ways``
(DeepSpeed files, None for DDP) and ``out``, where rank 0 writes bytes.
"""

import gc
import json
import sys
from pathlib import Path

import torch

from trainer.tasks.post_train.pairs import Pairs
from trainer.tasks.texts import SubBatch, Texts

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from trainer.engine.backends import build_backend
from trainer.engine.distributed import Distributed, leave, start
from trainer.engine.optimizer import build_optimizer
from trainer.engine.step_module import StepModule
from trainer.models.build import build_news_encoder
from trainer.recipes.load import from_settings
from trainer.tasks.post_train.pairs import PostTrainModule

VOCAB_SIZE = 500


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text())
    found = {}
    # One process group for all ways: DeepSpeed keeps the first one that it saw.
    torch.distributed.destroy_process_group = lambda *_: None
    for way in spec["ways"]:
        config = from_settings(spec["settings"] | {"run.deepspeed": way}, where="spec")
        with start(config) as distributed:
            found[str(way)] = measure(config, distributed)
            is_main = distributed.is_main
        gc.collect()
    if is_main:
        Path(spec["out"]).write_text(json.dumps(found))
    return 0


def measure(config, distributed: Distributed) -> dict[str, int]:
    """Bytes of the tensors that live after the first backward pass of a step and after the last."""
    gc.collect()
    before = set(storages())
    task = PostTrainModule(build_news_encoder(config.model, vocab_size=VOCAB_SIZE, pad_id=0))
    optimizer = build_optimizer(task, config.optimizer)
    module = StepModule(task.train(), config.run.precision, "cpu")
    backend = build_backend(module, optimizer, distributed, config.optimizer)
    backend.create_moments(0)
    parameters = list(module.parameters())
    found = []
    for _ in range(2):
        found = []
        for micro in range(distributed.accumulation):
            is_last = micro == distributed.accumulation - 1
            with backend.micro_step(is_last=is_last):
                backend.backward(backend.module(batch(config))["loss"], is_last=is_last)
            found.append(live(before, parameters))
        backend.step()
    return {"first": found[0], "last": found[-1]}


def batch(config) -> Pairs:
    size, length = config.run.micro_batch, 8
    ids = torch.randint(5, VOCAB_SIZE, (size, length))
    mask = torch.ones_like(ids)
    index = torch.stack([torch.arange(size), torch.arange(size).roll(1)], dim=1)
    texts = Texts((SubBatch(ids, mask),))
    return Pairs(titles=texts, bodies=texts, title_index=index)


def storages() -> dict[int, int]:
    """Every live storage, by address, with its bytes."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type != "meta":
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


def live(before: set[int], parameters: list[torch.nn.Parameter]) -> int:
    assert parameters  # they stay alive, and with them their gradients
    gc.collect()
    return sum(size for address, size in storages().items() if address not in before)


if __name__ == "__main__":
    leave(main())
