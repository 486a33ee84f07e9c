"""The whole method through the command line, small: its steps, resumption, and what comes out."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.launch import metrics
from helpers.process import one_thread
from helpers.tnr import ROOT, tnr
from helpers.world import TINY_CLICKS, TinyWorld, make_world

TEMPLATE = ROOT / "launchers" / "templates" / "demo.yaml"
SMALL_WORLD = {
    "articles": 120,
    "users": 40,
    "train-impressions": 60,
    "dev-impressions": 30,
    "body-words": 40,
    "candidates-mean": 6,
    "history-mean": 5,
}


def small_pipeline(folder: Path) -> Path:
    """The demo's pipeline, shrunk to seconds: the same steps, fewer of everything."""
    content = yaml.safe_load(TEMPLATE.read_text())
    content["run"] = str(folder / "run")
    content["data"]["synthesize"] = SMALL_WORLD
    content["tokenizer"] = {"vocab_size": 300, "title_tokens": 24, "body_tokens": 48}
    content["teachers"] = {"count": 2, "every": 3}
    content["set"] |= {
        "model.backbone.hidden_size": 16,
        "model.backbone.num_layers": 2,
        "run.global_batch": 8,
        "run.micro_batch": 8,
    }
    for stage in content["stages"].values():
        stage["set"]["run.max_steps"] = 6
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(content))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished pipeline: its file and its folder."""
    folder = tmp_path_factory.mktemp("method")
    config = small_pipeline(folder)
    done = tnr("pipeline", "run", config, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return config, folder / "run"


@pytest.mark.slow
def test_it_ends_with_a_table_and_a_plot(finished: tuple[Path, Path]) -> None:
    _, run = finished
    table = (run / "report.md").read_text()
    for name in ("student-1", "student-2", "student-1 (plain)", "teacher", "popularity", "ceiling"):
        assert f"| {name} " in table
    assert (run / "quality_speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_running_it_again_skips_every_step(finished: tuple[Path, Path]) -> None:
    config, run = finished
    before = (run / "report.md").stat().st_mtime_ns
    again = tnr("pipeline", "run", config)
    assert again.returncode == 0 and "done already" in again.stdout
    assert (run / "report.md").stat().st_mtime_ns == before
    status = tnr("pipeline", "status", config).stdout.splitlines()[1:]
    assert status and all(" done " in line for line in status)


@pytest.mark.slow
def test_predicting_and_scoring_agree_with_evaluating(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    _, run = finished
    out = tmp_path / "prediction.zip"
    model, data = run / "runs" / "stage-2-student-1-s0" / "export", run / "data"
    words = ("--articles", data / "articles", "--clicks", data / "dev", "--out", out)
    assert tnr("predict", model, *words).returncode == 0
    scored = tnr("score", out, run / "world" / "dev" / "behaviors.tsv")
    assert scored.returncode == 0, scored.stderr
    record = json.loads((run / "evaluations" / "student-1-s0.json").read_text())
    found = dict(line.split(":", 1) for line in scored.stdout.splitlines() if ":" in line)
    assert found["AUC"] == f"{record['metrics']['auc']:.4f}"
    assert found["nDCG@10"] == f"{record['metrics']['ndcg10']:.4f}"


@pytest.mark.slow
def test_stored_teachers_are_complete_and_say_what_the_live_ones_say(
    finished: tuple[Path, Path],
) -> None:
    _, run = finished
    models = [run / "runs" / f"finetune-teacher-{m}" / "export" for m in (1, 2)]
    words = ("--stage", 2, "--articles", run / "data" / "articles", "--clicks", run / "data/train")
    for action in ("status", "verify"):
        done = tnr("teachers", action, *words, "--models", *models)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_an_exported_student_loads_anywhere(finished: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from trainer.models.recommender import Recommender

    _, run = finished
    moved = tmp_path / "student"
    assert tnr("export", run / "runs" / "stage-2-student-2-s0", "--out", moved).returncode == 0
    tokens = AutoTokenizer.from_pretrained(moved)(["two words", "three more words"], padding=True)
    import torch

    model = Recommender.from_pretrained(moved)
    ids, mask = (torch.tensor(tokens[name]) for name in ("input_ids", "attention_mask"))
    assert model.encode_news(ids, mask).shape == (2, 64)
    assert tnr("export", run / "runs" / "stage-2-student-2-s0", "--out", moved).returncode == 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("killed"))


def finetune(world: TinyWorld, name: str) -> list[str]:
    settings = TINY_CLICKS | {
        "data.articles": world.articles.path,
        "data.clicks": world.impressions.path,
        "run.dir": world.folder / name,
        "run.max_steps": 300,
        "run.epochs": 1000,
        "run.log_every": 1,
        "run.checkpoint_every": 7,
    }
    return ["train", "finetune", *(str(w) for k, v in settings.items() for w in (f"--{k}", v))]


@pytest.mark.slow
def test_a_run_killed_at_any_step_ends_with_the_same_losses(world: TinyWorld) -> None:
    assert tnr(*finetune(world, "whole")).returncode == 0
    words = finetune(world, "killed")
    for at_line in (5, 120):
        killed = subprocess.Popen(
            [sys.executable, "-m", "trainer.cli.main", *words],
            cwd=ROOT,
            env=one_thread(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        log, deadline = world.folder / "killed" / "metrics.jsonl", time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= at_line):
            assert time.monotonic() < deadline and killed.poll() is None
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not (world.folder / "killed" / "export").exists()
    assert tnr(*words).returncode == 0
    whole, resumed = (metrics(world.folder / name) for name in ("whole", "killed"))
    assert len(whole) == 300 and resumed == whole


@pytest.mark.slow
def test_the_demo_takes_ones_own_files(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = finished
    shutil.copytree(run / "world", tmp_path / "mine")
    words = ("--articles", tmp_path / "mine" / "articles.jsonl", "--out", tmp_path / "demo")
    half = tnr("demo", *words)
    assert half.returncode == 2 and "--clicks" in half.stderr
    log = tmp_path / "mine" / "train" / "behaviors.tsv"
    printed = tnr("demo", *words, "--clicks", log, "--print")
    assert printed.returncode == 0, printed.stderr
    (split,) = (tmp_path / "demo" / "split").iterdir()
    parts = [split / part / "behaviors.tsv" for part in ("train", "dev")]
    assert b"".join(part.read_bytes() for part in parts) == log.read_bytes()
    assert len(parts[1].read_text().splitlines()) == len(log.read_text().splitlines()) // 10
