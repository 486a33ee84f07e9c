"""The post-training recipe on one process, under DDP and under ZeRO 0 to 3: the same 20 losses."""

import pytest
from helpers.launch import metrics
from helpers.tnr import tnr
from helpers.world import TINY_MODEL, TinyWorld, make_world

STEPS = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("equality"), num_articles=60)


def train(world: TinyWorld, name: str, processes: int, *more: object) -> dict[int, float]:
    run = world.folder / "runs" / name
    settings = [word for key, value in TINY_MODEL.items() for word in (f"--{key}", value)]
    done = tnr(
        *("train", "post_train", "--data.articles", world.articles.path, "--run.dir", run),
        *settings,
        *("--run.micro_batch", 4, "--run.max_steps", STEPS, "--run.epochs", 100),
        *(
            "--run.log_every",
            1,
            "--run.copies.rule",
            "none",
            "--optimizer.lr",
            1e-2,
            "--optimizer.backbone_lr",
            1e-3,
        ),
        *("--model.backbone.hidden_dropout", 0, "--model.backbone.attention_dropout", 0),
        *("--model.trainable_layers", 1, *more),
        processes=processes,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return metrics(run)


@pytest.fixture(scope="module")
def plain(world: TinyWorld) -> dict[int, float]:
    losses = train(world, "plain", 1)
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "zero0", "zero1", "zero2", "zero3"])
def test_two_processes_give_the_losses_of_one(
    world: TinyWorld, plain: dict[int, float], mode: str
) -> None:
    more = () if mode == "ddp" else ("--run.deepspeed", mode)
    losses = train(world, mode, 2, *more)
    assert losses == pytest.approx(plain, rel=1e-5)


def test_micro_batches_do_not_change_the_losses(world: TinyWorld, plain: dict[int, float]) -> None:
    assert train(world, "micro", 1, "--run.micro_batch", 2) == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_in_batch_negatives_do_not_depend_on_the_ranks(world: TinyWorld) -> None:
    one = train(world, "in-batch-1", 1, "--data.in_batch_negatives", "true", "--run.micro_batch", 8)
    two = train(world, "in-batch-2", 2, "--data.in_batch_negatives", "true", "--run.micro_batch", 4)
    assert two == pytest.approx(one, rel=1e-5)
