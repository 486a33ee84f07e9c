"""Stored logits of stage I: what a student computes from vectors, for the negatives that it
draws."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import flat
from helpers.launch import metrics
from helpers.process import one_thread
from helpers.teacher_columns import request, silent, targets, teachers_of
from helpers.tnr import ROOT
from helpers.world import TINY_MODEL, TinyWorld, make_world

from shards.columns import ColumnReader, ColumnWriter
from shards.negatives import Negatives, draw_negatives, draw_window_negatives
from shards.order import EpochOrder
from shards.stream import Stream
from trainer.cli.main import main
from trainer.config.validate import validate
from trainer.engine.signals import StopRequest
from trainer.errors import ColumnError, ConfigError, DataError, UsageError
from trainer.export.folder import load_export
from trainer.tasks.build import build
from trainer.tasks.post_train.teachers import stored_logits
from trainer.tasks.registry import open_sources
from trainer.teacher_server import cells as cells_module
from trainer.teacher_server.fill import fill
from trainer.teacher_server.kinds import LOGITS
from trainer.teacher_server.kinds import logits as logits_module
from trainer.teacher_server.kinds.logits import SCORES, DrawnLogits, Logits, parse_epochs
from trainer.teacher_server.kinds.text import TextVectors
from trainer.teacher_server.status import status

BATCH = 12
TEXT = TextVectors.name
"""Four global batches are an epoch of 40 articles and 8 of the next one."""
WINDOW = {"data__negatives_from": "window", "data__window_shards": 2}


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    return make_world(tmp_path, num_impressions=2)


@pytest.fixture
def teachers(world: TinyWorld) -> list[str]:
    """Two, with their vectors in float32."""
    made = teachers_of(world, 1)
    fill(made, request(world, 1, dtype="float32"), silent)
    return made


def config_of(world: TinyWorld, teachers: list[str], **settings: object):
    given = {
        "teachers__models": teachers,
        "teachers__dtype": "float32",
        "teachers__logits": "stored",
        "run__global_batch": BATCH,
        "run__micro_batch": BATCH,
    }
    return world.config("post_train_distill", **given | settings)


def logits_of(world: TinyWorld, teachers: list[str], epochs=None, **settings: object) -> Logits:
    config = config_of(world, teachers, **settings)
    return stored_logits(config, open_sources(config), epochs)


def steps(world: TinyWorld, teachers: list[str], count: int = 4, **settings: object):
    """The batches and outputs of the first steps of an untrained student, without dropout."""
    torch.manual_seed(0)
    built = build(config_of(world, teachers, **settings))
    built.module.eval()
    found = []
    for _, rows in zip(range(count), Stream(built.data.order, BATCH), strict=False):
        batch = built.data.collate(rows).batch
        found.append((rows, batch, built.module(batch)))
    return found


def fill_logits(logits: Logits, part: tuple[int, int] = (0, 1)) -> int:
    return logits_module.fill_logits(logits, part, silent, StopRequest())


def columns_of(world: TinyWorld) -> dict[str, bytes]:
    """Every file of every column of logits, by name."""
    folder = world.articles.columns_dir
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.glob(f"{LOGITS}-*/*"))
    }


@pytest.mark.parametrize(
    ("source", "dtype"), [("corpus", "float32"), ("window", "float16"), ("corpus", "int8")]
)
def test_the_columns_hold_each_body_times_its_titles(
    world: TinyWorld, teachers: list[str], source: str, dtype: str, monkeypatch
) -> None:
    """Against a loop over the draws and the stored vectors; two articles are damaged."""
    monkeypatch.setattr(logits_module, "_CHUNK", 7)
    fill(teachers, request(world, 1, dtype=dtype), silent)
    skipped = np.array([3, 20])
    counts = np.diff(world.articles.shard_starts).tolist()
    order = EpochOrder(counts, world.articles.fingerprint, 5, 2, skipped)
    asked = Logits(
        articles=world.articles,
        teachers=[load_export(one) for one in teachers],
        negatives=Negatives(order, 4, source),
        epochs=(0, 2),
        dtype=dtype,
        compute="fp32",
        settings="",
    )
    assert fill_logits(asked) == 2 * 2 * 3
    whole = Negatives(EpochOrder(counts, world.articles.fingerprint, 5, 2), 4, source)
    others = replace(asked, negatives=whole).column(asked.teachers[0], 0).target
    with pytest.raises(ColumnError, match=r"order_without_damaged is .* not asked for"):
        ColumnReader.open(*others)
    rows = np.setdiff1d(np.arange(40), skipped)
    draw = {
        "corpus": lambda at: draw_negatives(5, rows, at, 40, 4, skipped=skipped),
        "window": lambda at: draw_window_negatives(order, 5, rows, at, 4),
    }[source]
    for teacher in asked.teachers:
        text = ColumnReader.open(*targets(teacher, request(world, 1, dtype=dtype))[0])
        vectors = {}
        for name in ("title", "body"):
            vectors[name] = text.gather(name, np.arange(40)).astype(np.float64)
            if dtype == "int8":
                vectors[name] *= text.gather(f"{name}.scale", np.arange(40))[:, None]
        for epoch in (0, 2):
            column = ColumnReader.open(*asked.column(teacher, epoch).target)
            stored = column.gather(SCORES, np.arange(40))
            assert stored.dtype == ("float32" if dtype == "float32" else "float16")
            assert not stored[skipped].any()
            negatives = draw(np.full(38, epoch))
            for place, row in enumerate(rows):
                titles = [row, *negatives[place]]
                expected = [vectors["body"][row] @ vectors["title"][title] for title in titles]
                rtol = 1e-5 if dtype == "float32" else 1e-3
                np.testing.assert_allclose(stored[row], expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("draws", [{}, WINDOW, {"data__static_negatives": True}])
def test_a_step_with_stored_logits_has_the_losses_of_a_computed_one(
    world: TinyWorld, teachers: list[str], draws: dict[str, object]
) -> None:
    """In float32 they differ in the order of the sums over a vector's elements alone."""
    logits = logits_of(world, teachers, **draws)
    assert logits.epochs == ((0,) if draws.get("data__static_negatives") else (0, 1))
    fill_logits(logits)
    computed = steps(world, teachers, teachers__logits="computed", **draws)
    stored = steps(world, teachers, **draws)
    without = steps(world, teachers, loss__embedding=0.0, **draws)
    assert set(stored[-1][0].epochs) == {0, 1}, "no batch runs on into the next epoch"
    for (_, _, expected), (_, _, found), (_, batch, alone) in zip(
        computed, stored, without, strict=True
    ):
        for name, value in expected["losses"].items():
            torch.testing.assert_close(found["losses"][name], value, rtol=2e-6, atol=1e-7)
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=2e-6, atol=1e-7)
        # Without the embedding loss no vector is read.
        assert set(flat(batch.teachers)) == {"scores.0", "scores.1"}
        assert alone["losses"].keys() == {"target", "distill"}
        for name, value in alone["losses"].items():
            torch.testing.assert_close(value, expected["losses"][name], rtol=2e-6, atol=1e-7)
        for name, value in expected["report"].items():
            torch.testing.assert_close(alone["report"][name], value, rtol=1e-5, atol=1e-7)


def test_a_run_without_vectors_trains_and_is_continued_into_more_epochs(
    world: TinyWorld, teachers: list[str], capsys
) -> None:
    """Its teachers' vectors may be gone; its own longer run is no other run."""
    given = TINY_MODEL | {
        "data.articles": world.articles.path,
        "run.dir": world.folder / "run",
        "run.epochs": 0.5,
        "run.log_every": 1,
        "loss.embedding": 0,
        "teachers.dtype": "float32",
        "teachers.logits": "stored",
    }
    pairs = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    words = ["post_train_distill", *pairs, "--teachers.models", *teachers]
    assert main(["train", *words]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"tnr: error: no usable {LOGITS} column for epoch 0 of teacher ")
    assert main(shlex.split(said.rpartition("Repair: tnr ")[2])) == 0
    for path in world.articles.columns_dir.glob(f"{TEXT}-*/news-*"):
        path.unlink()
    assert main(["train", *words]) == 0
    losses = metrics(world.folder / "run")
    assert len(losses) == 3 and all(map(np.isfinite, losses.values()))
    # 1.2 epochs are 6 batches of 8, the last of which is of the second epoch.
    more = ["--run.epochs", "1.2"]
    assert main(["train", *words, *more]) == 1
    said = capsys.readouterr().err
    assert (
        "epoch is 0 in the column, asked for 1" in said and "teachers logits --epochs 0,1" in said
    )
    fill(teachers, request(world, 1, dtype="float32"), silent)
    assert main(["teachers", "logits", *words, *more]) == 0
    assert "done: 6 cells filled" in capsys.readouterr().out
    assert main(["train", *words, *more]) == 0
    assert len(metrics(world.folder / "run")) == 6


def test_other_draws_are_refused_by_the_field_and_mended_by_the_command(
    world: TinyWorld, teachers: list[str]
) -> None:
    fill_logits(logits_of(world, teachers))
    fill(teachers, request(world, 1, dtype="float16"), silent)
    for settings, said in (
        (WINDOW, "negatives_from is 'corpus' in the column, asked for 'window'"),
        (WINDOW | {"data__window_shards": 1}, "window_shards is 2 in the column, asked for 1"),
        ({"run__seed": 1}, "seed is 0 in the column, asked for 1"),
        ({"data__num_negatives": 2}, "num_negatives is 3 in the column, asked for 2"),
        ({"teachers__dtype": "float16"}, "dtype is 'float32' in the column, asked for 'float16'"),
        ({"run__epochs": 2}, f"no usable {LOGITS} column for epoch 2 of teacher {teachers[0]}: "),
    ):
        with pytest.raises(ColumnError, match=re.escape(said)) as caught:
            steps(world, teachers, **settings)
        assert main(shlex.split(str(caught.value).rpartition("Repair: tnr ")[2])) == 0
        steps(world, teachers, 1, **settings)


def test_a_changed_teacher_is_refused_and_vectors_come_first(
    world: TinyWorld, teachers: list[str]
) -> None:
    fill_logits(logits_of(world, teachers))
    torch.manual_seed(9)
    other = build(world.config("post_train"))
    other.export(other.module.model, Path(teachers[1]), {})
    with pytest.raises(ColumnError, match=r"teacher_weights_sha256 is .* asked for") as caught:
        steps(world, teachers, loss__embedding=0.0)
    command = str(caught.value).rpartition("Repair: tnr ")[2]
    assert command.startswith("teachers logits --epochs 0,1 post_train_distill ")
    with pytest.raises(ColumnError, match=f"no usable {TEXT} column") as caught:
        fill_logits(logits_of(world, teachers))
    assert main(shlex.split(str(caught.value).rpartition("Repair: tnr ")[2])) == 0
    assert main(shlex.split(command)) == 0
    steps(world, teachers, 1, loss__embedding=0.0)


def test_stopped_and_run_again_and_in_parts_the_same_bytes(
    world: TinyWorld, teachers: list[str], monkeypatch, capsys
) -> None:
    logits = logits_of(world, teachers)
    words = shlex.split(logits.command)[1:]
    assert main(words) == 0
    at_once = columns_of(world)
    assert len(at_once) == 4 * (1 + 2 * 3)

    def forget() -> None:
        for name in at_once:
            (world.articles.columns_dir / name).unlink()

    forget()
    encode, calls = DrawnLogits.encode, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGUSR2)
        return encode(*given)

    monkeypatch.setattr(DrawnLogits, "encode", interrupted)
    capsys.readouterr()
    assert main(words) == 75
    assert "stopped by SIGUSR2: 8 of 12 cells are left" in capsys.readouterr().err
    # A kill between the data and the record of a cell leaves the one without the other.
    killed = next(iter(world.articles.columns_dir.glob(f"{LOGITS}-*/news-000000.json")))
    killed.unlink()
    assert main(words) == 0
    assert "done: 9 cells filled" in capsys.readouterr().out
    assert columns_of(world) == at_once
    forget()
    cells = [fill_logits(logits, (part, 5)) for part in (3, 0, 4, 1, 2)]
    assert all(cells) and sum(cells) == 12
    # The command stands by itself, also where texts are too long for its recipe's own backbone.
    long = {"data__max_body_tokens": 4096, "model__backbone__max_positions": 4096}
    assert shlex.split(logits_of(world, teachers, **long).command)[1:] == words
    assert columns_of(world) == at_once


def test_too_little_room_and_what_does_not_fit_are_refused(
    world: TinyWorld, teachers: list[str], monkeypatch
) -> None:
    logits = logits_of(world, teachers)
    with monkeypatch.context() as patched:
        patched.setattr(cells_module, "free_bytes", lambda folder: 1_000_000)
        with pytest.raises(DataError, match="name fewer epochs"):
            fill_logits(logits)
    assert not columns_of(world)
    large = np.full((16, 12), 200.0, np.float16)
    fill(teachers, request(world, 1), silent)
    writer = ColumnWriter(*targets(load_export(teachers[0]), request(world, 1))[0])
    writer.write(0, {"title": large, "body": large}, replace=True)
    with pytest.raises(ColumnError, match=r"not finite in \d+ rows: .*float16"):
        fill_logits(replace(logits, dtype="float16"))


def test_logits_may_come_while_the_student_trains(
    world: TinyWorld, teachers: list[str], capsys
) -> None:
    """Vectors are not read, so that the first batch needs the cells of its window alone."""
    settings = WINDOW | {"data__window_shards": 1, "data__num_negatives": 2}
    logits = logits_of(world, teachers, **settings)
    fill_logits(logits)
    settings |= {"loss__embedding": 0.0, "teachers__follow_timeout_s": 20.0}
    expected = [out["loss"] for _, _, out in steps(world, teachers, **settings)]
    for path in columns_of(world):
        (world.articles.columns_dir / path).unlink()
    fill_logits(replace(logits, epochs=(0,)))
    later = threading.Timer(0.7, fill_logits, [logits])
    later.start()
    found = [out["loss"] for _, _, out in steps(world, teachers, teachers__follow=True, **settings)]
    later.join()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    said = capsys.readouterr().out
    assert f"the column {LOGITS} of teacher {teachers[0]} has not been started yet" in said


def test_filling_loads_no_torch(world: TinyWorld, teachers: list[str]) -> None:
    words = shlex.split(logits_of(world, teachers).command)[1:]
    program = (
        "import sys\nfrom trainer.cli.main import main\n"
        f"assert main({words!r}) == 0\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=one_thread(),
        timeout=120,
        check=True,
    )
    *_, filled, heavy = done.stdout.splitlines()
    assert filled == "done: 12 cells filled; the others were there already" and heavy == "[]"


def test_status_tells_of_them_and_prune_keeps_those_of_kept_teachers(
    world: TinyWorld, teachers: list[str], capsys
) -> None:
    fill_logits(logits_of(world, teachers))
    shown = status(teachers, request(world, 1, dtype="float32"))
    assert [column.column for column in shown] == [TEXT, LOGITS, LOGITS] * 2
    assert [column.detail for column in shown[1:3]] == [
        "epoch 0 of seed 0, 3 negatives from the corpus",
        "epoch 1 of seed 0, 3 negatives from the corpus",
    ]
    assert all((column.state, column.rows) == ("complete", 40) for column in shown)
    words = ["--articles", str(world.articles.path), "--dtype", "float32", "--models", *teachers]
    verify = ["teachers", "verify", "--stage", "1", *words]
    assert main(verify) == 0
    assert f"{LOGITS}, {shown[2].detail}: bytes intact" in capsys.readouterr().out
    damaged = next(world.articles.columns_dir.glob(f"{LOGITS}-*/news-000001.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert main(verify) == 1
    assert f"{damaged}: the checksum of {SCORES} is not" in capsys.readouterr().err
    for path in damaged.parent.glob("news-*"):
        path.unlink()
    states = [column.state for column in status(teachers, request(world, 1, dtype="float32"))]
    assert sorted(states) == ["complete"] * 5 + ["empty"]
    command = ["teachers", "prune", str(world.articles.path), "--keep-models", teachers[0], "--yes"]
    assert main(command) == 0
    assert "3 columns" in capsys.readouterr().out
    left = status(teachers, request(world, 1, dtype="float32"))
    assert [column.column for column in left] == [
        TEXT,
        LOGITS,
        LOGITS,
        TEXT,
    ]


def test_where_logits_cannot_be_stored(world: TinyWorld) -> None:
    given = {"teachers__models": ["t"], "teachers__logits": "stored"}
    with pytest.raises(ConfigError, match=r"logits is stored, but teachers\.source is live"):
        validate(world.config("post_train_distill", **given, teachers__source="live"))
    for task, settings, said in (
        # What the negatives of a batch are is not known before.
        ("post_train_distill", {"data__in_batch_negatives": True}, "data.in_batch_negatives"),
        # Stage II stores the score of every candidate.
        ("finetune_distill", {}, "teachers.logits"),
    ):
        with pytest.raises(ConfigError, match=f"task {task} does not read {said}"):
            world.config(task, **given | settings)


def test_epochs_as_words() -> None:
    assert parse_epochs("2,0,5") == (0, 2, 5) and parse_epochs("3") == (3,)
    for text in ("", "a", "-1", "0-1", "1,", "0 1"):
        with pytest.raises(UsageError, match="such as 0,1,2"):
            parse_epochs(text)
