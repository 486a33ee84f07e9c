"""A full disk under every command that writes: one line, and the same command goes on with room."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sets import article_texts
from helpers.small_disk import SmallDisk, small_disk
from helpers.tiny_models import released_unilmv2
from helpers.world import TINY_MODEL, TinyWorld, make_world
from transformers import BertConfig, BertModel

from trainer.cli.main import main
from trainer.monitor.board import Board
from trainer.teacher_server import cells


@dataclass(frozen=True)
class Inputs:
    """What the commands read; all of it lies on another disk."""

    world: TinyWorld
    teacher: str
    recommender: str
    evaluation: Path
    articles: Path
    behaviors: Path
    released: Path
    """Folder of weights and a vocabulary as Microsoft released UniLMv2's."""
    pipeline: Path


PIPELINE = """\
run: R
data: {synthesize: {articles: 300, users: 40, train_impressions: 200, dev_impressions: 50,
                    test_impressions: 50}}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    world = make_world(folder / "world")
    encoder = shutil.copytree(world.tokens.tokenizer_dir, world.folder / "encoder")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, vocab_size=world.tokens.vocab_size, intermediate_size=16)
    BertModel(config, add_pooling_layer=False).save_pretrained(encoder)
    articles = folder / "articles.jsonl"
    articles.write_text(
        "".join(
            json.dumps({"id": f"N{row}", "title": title, "body": body * 20}) + "\n"
            for row, (title, body) in enumerate(map(article_texts, range(200)))
        )
    )
    behaviors = folder / "behaviors.tsv"
    behaviors.write_text(
        "".join(f"{n}\tU{n % 9}\t11/11/2019 9:00:00 AM\tN1 N2\tN3-1 N4-0\n" for n in range(2000))
    )
    built = Inputs(
        world=world,
        teacher=world.teacher("post_train", seed=1),
        recommender=world.teacher("finetune", seed=1),
        evaluation=folder / "evaluation.json",
        articles=articles,
        behaviors=behaviors,
        released=folder / "released",
        pipeline=folder / "pipeline.yaml",
    )
    built.released.mkdir()
    torch.save(released_unilmv2(), built.released / "unilm2.bin")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "news"]
    (built.released / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    built.pipeline.write_text(PIPELINE)
    assert run(evaluate(built, built.evaluation)) == 0
    return built


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as found:
        yield found


def run(words: list[object]) -> int:
    return main([str(word) for word in words])


def settings(**given: Any) -> list[object]:
    dotted = TINY_MODEL | {key.replace("__", "."): value for key, value in given.items()}
    return [word for key, value in dotted.items() for word in (f"--{key}", value)]


def evaluate(inputs: Inputs, out: Path) -> list[object]:
    sets = ["--articles", inputs.world.articles.path, "--clicks", inputs.world.impressions.path]
    speed = ["--speed-seconds", "0.01", "--device", "cpu"]
    return ["evaluate", inputs.recommender, *sets, *speed, "--out", out]


def words_of(command: str, inputs: Inputs, place: Path) -> list[object]:
    """The command, writing everything below ``place``."""
    world, out = inputs.world, place / "out"
    sets = ["--articles", world.articles.path, "--clicks", world.impressions.path]
    tokenizer = world.folder / "tokenizer"
    match command:
        case "shards build":
            return ["shards", "build", "--articles", inputs.articles, "--out", out]
        case "shards build --processes 2":
            shards = ["--samples-per-shard", 20, "--processes", 2]
            return [*words_of("shards build", inputs, place), *shards]
        case "shards build clicks":
            articles = ["--article-set", world.articles.path]
            return ["shards", "build", "--clicks", inputs.behaviors, *articles, "--out", out]
        case "shards index":
            return ["shards", "index", *sorted((place / "tars").iterdir()), "--out", out]
        case "shards tokenize":
            return ["shards", "tokenize", place / "articles", "--tokenizer", tokenizer]
        case "shards tokenize --processes 2":
            words = words_of("shards tokenize", inputs, place)
            return [*words, "--body-tokens", 50, "--processes", 2]
        case "shards train-tokenizer":
            size = ["--vocab-size", 300]
            return ["shards", "train-tokenizer", world.articles.path, "--out", out, *size]
        case "shards synthesize":
            counts = ["--articles", 300, "--users", 40, "--train-impressions", 200]
            counts += ["--dev-impressions", 50, "--test-impressions", 50]
            return ["shards", "synthesize", "--out", out, *counts, "--processes", 1]
        case "shards stats":
            return ["shards", "stats", world.articles.path, "--plot", out / "a.png"]
        case "train":
            given = settings(
                data__articles=world.articles.path, run__dir=out, run__max_steps=4,
                run__checkpoint_every=2, run__log_every=1, run__copies__rule="every_k",
                run__copies__every=2,
            )  # fmt: skip
            return ["train", "post_train", *given]
        case "train on frozen states":
            given = settings(
                data__articles=place / "articles", data__clicks=world.impressions.path,
                run__dir=world.folder / "frozen", run__max_steps=2, model__trainable_layers=1,
                model__frozen_states="float32",
            )  # fmt: skip
            return ["train", "finetune", *given]
        case "teachers cache":
            place_of = ["--articles", place / "articles", "--models", inputs.teacher]
            return ["teachers", "cache", "--stage", 1, *place_of]
        case "teachers cache --stage 2":
            place_of = ["--articles", place / "articles", "--clicks", place / "clicks"]
            return ["teachers", "cache", "--stage", 2, *place_of, "--models", inputs.recommender]
        case "teachers logits":
            given = settings(
                data__articles=place / "articles", run__dir=out, run__max_steps=4,
                teachers__models=inputs.teacher, teachers__logits="stored",
            )  # fmt: skip
            return ["teachers", "logits", "post_train_distill", *given]
        case "convert":
            files = ["--weights", inputs.released / "unilm2.bin"]
            files += ["--vocab", inputs.released / "vocab.txt"]
            return ["convert", "unilmv2", *files, "--out", out]
        case "pipeline run":
            return ["pipeline", "run", inputs.pipeline, "--out", out, "--only", "synthesize"]
        case "teachers adopt":
            return ["teachers", "adopt", world.folder / "encoder", "--out", out]
        case "evaluate":
            return evaluate(inputs, out / "evaluation.json")
        case "predict":
            return ["predict", inputs.recommender, *sets, "--out", out / "prediction.zip"]
        case "report":
            drawn = ["--out", out / "report.md", "--plot", out / "report.png"]
            return ["report", inputs.evaluation, *drawn, "--resamples", "0"]
        case "export":
            return ["export", inputs.recommender, "--out", out]
    raise AssertionError(command)


COMMANDS = (
    "shards build",
    "shards build --processes 2",
    "shards build clicks",
    "shards index",
    "shards tokenize",
    "shards tokenize --processes 2",
    "shards train-tokenizer",
    "shards synthesize",
    "shards stats",
    "train",
    "train on frozen states",
    "teachers cache",
    "teachers cache --stage 2",
    "teachers logits",
    "convert",
    "pipeline run",
    "teachers adopt",
    "evaluate",
    "predict",
    "report",
    "export",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_the_command_goes_on(
    command: str,
    inputs: Inputs,
    disk: SmallDisk,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells, "free_bytes", lambda _: 1 << 40)  # it would not even begin
    if command.startswith(("shards tokenize", "teachers", "train on")) and "adopt" not in command:
        columns = shutil.ignore_patterns("columns") if "tokenize" in command else None
        shutil.copytree(inputs.world.articles.path, disk.path / "articles", ignore=columns)
        shutil.copytree(inputs.world.impressions.path, disk.path / "clicks")
    if command == "teachers logits":
        assert run(words_of("teachers cache", inputs, disk.path)) == 0
    if command == "shards index":
        (disk.path / "tars").mkdir()
        for tar in inputs.world.articles.path.glob("*.tar"):
            shutil.copy(tar, disk.path / "tars")
    words = words_of(command, inputs, disk.path)
    for kib in (0, 8, 32, 128):
        disk.leave(kib)
        capfd.readouterr()
        code = run(words)
        err = capfd.readouterr().err
        told = [line for line in err.splitlines() if line.startswith("tnr: error: ")]
        assert "Traceback" not in err and "Exception" not in err, err
        if code == 0:
            assert kib  # so much is enough, and nothing that was left disturbed it
            return
        assert code == 1 and len(told) == 1 and str(disk.path) in told[0], err
        # A pipeline's own line names the step's log, and then shows the step's.
        assert "No space left on device" in (err if command == "pipeline run" else told[0]), err
    disk.make_room()
    assert run(words) == 0, capfd.readouterr().err
    assert not [path for path in disk.path.rglob(".*") if ".tmp-" in path.name]


def test_tensorboard_on_a_full_disk_raises_and_says_nothing_itself(
    disk: SmallDisk, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)  # Python prints with stacks
    board = Board(disk.path / "tensorboard", 0, {})
    disk.leave(8)
    with pytest.raises(OSError, match="No space left on device"):
        for step in range(2000):
            board.write(step, {f"train/{'x' * 50}_{name}": 1.0 for name in range(20)}, {})
            board.flush()
    assert not printed and capfd.readouterr().err == ""
