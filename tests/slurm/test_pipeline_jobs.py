"""The demo's pipeline, scaled down, as a graph of Slurm jobs, through the command line."""

import json
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.slurm_cluster import SlurmCluster
from helpers.tnr import ROOT, tnr

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

FINISH_S = 400
WORLD = {
    "articles": 100,
    "users": 30,
    "train-impressions": 40,
    "dev-impressions": 20,
    "body-words": 30,
    "candidates-mean": 5,
    "history-mean": 4,
}


def small_pipeline(folder: Path) -> Path:
    """The demo's pipeline with one student, two teachers and few steps, and a cluster file."""
    content = yaml.safe_load((ROOT / "launchers" / "templates" / "demo.yaml").read_text())
    content["run"] = str(folder / "run")
    content["data"]["synthesize"] = WORLD
    content["tokenizer"] = {"vocab_size": 300, "title_tokens": 24, "body_tokens": 48}
    content["teachers"] = {"count": 2, "every": 3}
    content["students"] = content["students"][:1]
    content["baselines"] = {"plain_students": False, "plain_teacher": False, "random": False}
    content["evaluate"] = {"teachers": False, "plot": False}
    content["resources"] = {"cpus": 1, "minutes": 10}
    content["set"] |= {
        "model.backbone.hidden_size": 16,
        "model.backbone.num_layers": 2,
        "run.global_batch": 8,
        "run.micro_batch": 8,
    }
    for stage in content["stages"].values():
        stage["set"]["run.max_steps"] = 6
    cluster = {
        "python": sys.executable,
        "env": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    }
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    content["cluster"] = "cluster.yaml"
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(content))
    return config


def rows_of(config: Path) -> dict[str, dict]:
    done = tnr("pipeline", "status", config, "--json")
    assert done.returncode == 0, done.stderr
    return {row["step"]: row for row in json.loads(done.stdout)}


def test_the_pipeline_is_submitted_once_and_finishes(slurm_cluster: SlurmCluster, tmp_path: Path):
    config = small_pipeline(tmp_path)
    first = tnr("pipeline", "submit", config)
    assert first.returncode == 0, first.stderr
    submitted = len(first.stdout.splitlines()) - 1
    again = tnr("pipeline", "submit", config)
    assert again.stdout.startswith("0 jobs submitted"), again.stdout + again.stderr
    rows = rows_of(config)
    assert len(rows) == submitted
    assert rows["report"]["state"] == "queued"
    assert rows["report"]["reason"] == "Dependency"

    numbers = {row["job"] for row in rows.values()}
    deadline = time.monotonic() + FINISH_S
    while left := numbers & set(slurm_cluster.run("squeue", "--noheader", "--format=%F").split()):
        if time.monotonic() > deadline:
            pytest.fail(f"still queued: {sorted(left)}\n{slurm_cluster.logs()}")
        time.sleep(1)
    rows = rows_of(config)
    logs = {name: Path(row["log"]).read_text()[-1500:] for name, row in rows.items() if row["log"]}
    wrong = {name: logs.get(name) for name, row in rows.items() if row["state"] != "done"}
    assert not wrong, "\n".join(f"---- {name}\n{text}" for name, text in wrong.items())
    assert "student-1" in (tmp_path / "run" / "report.md").read_text()
    assert rows["post-train"]["progress"].startswith("step 6/6, loss ")
    assert rows["cache-1"]["progress"] == "2/2 tasks"
    assert tnr("pipeline", "submit", config).stdout.startswith("0 jobs submitted, 0 already queued")
