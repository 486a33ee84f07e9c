"""Loaders of what training, evaluation and launching leave or are given, for the fuzz target."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import yaml
from helpers.exports import rewrite
from helpers.fuzz import Loader
from helpers.fuzz_data import anything_goes
from helpers.per_impression import write_evaluation
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, tiny_model

from launchers.jobs import JobBook
from launchers.pipeline import load_pipeline, pipeline_steps
from launchers.slurm import load_cluster, make_job
from launchers.stamps import Stamp, Stamps, State
from launchers.steps import Step
from shards.files import sha256_file
from trainer.checkpoint.binding import bind, binding_of
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore, stated_at
from trainer.checkpoint.tensors import MODEL, OPTIMIZER, load_model, write_tensors
from trainer.config.flat import to_dict
from trainer.engine.deepspeed_file import read_deepspeed_file
from trainer.evaluate.compare import compare, comparison_text, per_impression_models, resample
from trainer.evaluate.prediction import score_prediction, write_prediction
from trainer.evaluate.report import make_rows, read_ceilings, read_evaluations, table
from trainer.export.folder import export_model, load_export
from trainer.models.build import build_news_encoder
from trainer.monitor.runs import find_runs
from trainer.monitor.runs import table as runs_table
from trainer.recipes.load import load_config

# ---- checkpoints and exports


class _Task(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor(1.5))


def _store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", Retention(newest=3), lambda line: None)


def _make_checkpoints(folder: Path) -> None:
    state = bind({"config": {}, "data": "x"}, (MODEL, OPTIMIZER))

    def write(building: Path) -> dict[str, Any]:
        torch.manual_seed(0)
        tensors = {name: value.contiguous() for name, value in _Task().state_dict().items()}
        moments = {"linear.weight/exp_avg": torch.ones(2, 3)}
        return write_tensors(building, tensors, moments, binding_of(stated_at(5, state)))

    _store(folder).save(5, state, write)


def _read_checkpoint(folder: Path) -> dict[str, Any]:
    found = _store(folder).find()
    if found is None:
        return {"step": None}
    task = _Task()
    load_model(found.folder, task)
    return {
        "step": found.step,
        "state": found.state,
        "model": {name: value.tolist() for name, value in task.state_dict().items()},
    }


def _forge_checkpoint(folder: Path) -> None:
    for manifest in folder.glob("checkpoints/step_*/manifest.json"):
        values = json.loads(manifest.read_text())
        for name in values["files"]:
            file = manifest.parent / name
            values["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        manifest.write_text(json.dumps(values))


def _make_export(folder: Path) -> None:
    torch.manual_seed(0)
    encoder = build_news_encoder(tiny_model(), vocab_size=VOCAB_SIZE, pad_id=PAD_ID)
    said = {"max_title_tokens": 10, "tokenizer_sha256": "0" * 64, "pad_to_max": False}
    export_model(encoder, folder / "export", None, said)


def _read_export(folder: Path) -> Any:
    export = load_export(folder / "export")
    model = export.load_model()
    ids = torch.arange(5, 11).reshape(2, 3)
    with torch.no_grad():
        vectors = model(ids, torch.ones_like(ids))
    return [export.news_parts, export.is_recommender, vectors.tolist()]


def _forge_export(folder: Path) -> None:
    digest = sha256_file(folder / "export" / "model.safetensors")
    rewrite(folder / "export", lambda info: info.update(weights_sha256=digest))


# ---- settings


def _make_recipe(folder: Path) -> None:
    config = load_config(
        "finetune", ["--data.articles", "a", "--data.clicks", "c", "--run.dir", "r"]
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(to_dict(config)))))


def _make_small_recipe(folder: Path) -> None:
    (folder / "base.yaml").write_text("task: post_train\nrun: {dir: r, epochs: 2}\n")
    text = "base: base.yaml\ndata: {articles: a}\nmodel:\n  backbone: {layers: [0, 1]}\n"
    (folder / "recipe.yaml").write_text(text + "optimizer: {lr: 5.0e-5, betas: [0.9, 0.999]}\n")


def _read_recipe(folder: Path) -> dict[str, Any]:
    return to_dict(load_config(str(folder / "recipe.yaml")))


PIPELINE = """
run: R
seeds: [0, 1]
data:
  synthesize: {articles: 300, gzip: true}
tokenizer: {vocab_size: 800, title_tokens: 24, body_tokens: 48}
set: {model.backbone.name: random, run.max_steps: 30}
teachers: {count: 2, every: 10}
students:
  - {name: one, layers: [0]}
stages:
  post_train:
    set: {optimizer.lr: 1.0e-3}
cluster: {partition: gpu, env: {A: b}, setup: ["source x"]}
"""


def _make_pipeline(folder: Path) -> None:
    (folder / "pipeline.yaml").write_text(PIPELINE)


def _read_pipeline(folder: Path) -> Any:
    config = load_pipeline(folder / "pipeline.yaml")
    steps = pipeline_steps(config)
    jobs = [make_job(step, config.cluster, folder / "p", "d").script for step in steps[:3]]
    return [[(step.name, step.command) for step in steps], jobs]


CLUSTER = """
partition: gpu
signal_s: 120
tasks: per_rank
modules: [cuda, gcc]
setup: [source .venv/bin/activate]
container: [apptainer, exec, image.sif]
srun: ["--mpi=none"]
env: {HF_HUB_OFFLINE: "1"}
directives: ["--exclude=node07"]
"""
STEP = Step(name="a", command=("tnr", "train", "x"), array=(("--one",), ("--two",)))


def _make_cluster(folder: Path) -> None:
    (folder / "cluster.yaml").write_text(CLUSTER)


def _read_cluster(folder: Path) -> str:
    return make_job(STEP, load_cluster(folder / "cluster.yaml"), Path("p"), "d").script


def _make_deepspeed(folder: Path) -> None:
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}))


def _read_deepspeed(folder: Path) -> Any:
    return read_deepspeed_file(folder / "ds.json")


# ---- evaluations and predictions


def _make_evaluations(folder: Path) -> None:
    users = np.repeat(np.arange(6, dtype=np.int32), 3)
    for number, name in enumerate(("ours", "theirs")):
        record = {
            "name": name,
            "role": "student",
            "seed": number,
            "layers": 2,
            "parameters": 1000,
            "speed": {"device": "cpu", "articles_per_s": 10.0},
            "counts": {"impressions": 18, "skipped": 0, "articles": 50},
            "data": {"impressions": "dev", "impressions_fingerprint": "f" * 64},
        }
        auc = np.linspace(0.4, 0.8, 18) + 0.01 * number
        path = folder / f"{name}.json"
        write_evaluation(path, record, users, auc)
        values = json.loads(path.read_text())
        file = folder / values["impressions_file"]
        values["impressions_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        path.write_text(json.dumps(values))


def _read_evaluations(folder: Path) -> Any:
    records = read_evaluations([folder / "ours.json", folder / "theirs.json"])
    said = [table(make_rows(records))]
    models, lacking = per_impression_models(records)
    if len(models) == 2:
        resampled = resample(models, 20)
        compared = compare(resampled, records, models[0].name, models[1].name)
        said += [table(make_rows(records, resampled.intervals())), comparison_text(compared)]
    return [said, lacking]


def _is_told(folder: Path, before: Any, now: Any) -> str | None:
    """A file that is gone is said to lack, and the rest is reported."""
    return None if now[1] else "another result"


def _make_truth(folder: Path) -> None:
    names = ("auc", "mrr", "ndcg5", "ndcg10")
    values = {f"{kind}_{name}": 0.7 for kind in ("best", "history") for name in names}
    (folder / "truth.json").write_text(json.dumps(values))


def _read_truth(folder: Path) -> Any:
    return repr(read_ceilings(folder / "truth.json"))


def _make_prediction(folder: Path) -> None:
    ids = [str(number) for number in range(1, 13)]
    offsets = np.arange(13) * 3
    scores = np.random.default_rng(0).random(36)
    write_prediction(folder / "prediction.zip", ids, scores, offsets)
    lines = [f"{one} [1,2,3]" for one in ids]
    (folder / "prediction.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{one}\tU1\t11/15/2019 8:55:22 PM\tN1\tN1-1 N2-0 N3-0" for one in ids]
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")


def _scored(name: str) -> Any:
    def load(folder: Path) -> Any:
        scored = score_prediction(folder / name, folder / "behaviors.tsv")
        return repr((scored.metrics.to_dict(), scored.num_missing, scored.has_more))

    return load


# ---- run folders, stamps and jobs


def _make_runs(folder: Path) -> None:
    run = folder / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"task": "post_train", "run": {"seed": 1}}))
    state = {"state": "stopped", "step": 5, "steps": 20, "reason": "SIGUSR2", "is_failed": False}
    (run / "state.json").write_text(json.dumps(state))
    record = {"step": 7, "time": time.time(), "train/loss": 0.5, "train/accuracy": 0.1}
    (run / "metrics.jsonl").write_text(f"{json.dumps(record)}\n" * 3)
    (run / "starts.jsonl").write_text('{"host": "node7", "time": 1.0}\n' * 2)


def _read_runs(folder: Path) -> Any:
    runs = find_runs([folder / "runs"])
    runs_table(runs)
    return [msgspec.json.encode(dataclasses.replace(run, age_s=None)) for run in runs]


def _make_jobs(folder: Path) -> None:
    book = JobBook(folder)
    book.note(STEP, "41", "d")
    stamps = Stamps(folder)
    stamps.write(STEP, Stamp("a", "d", State.DONE, "tnr train x", 1.0, 2.0, 0))


def _read_jobs(folder: Path) -> Any:
    stamps = Stamps(folder)
    return repr((JobBook(folder).jobs, stamps.read(STEP), stamps.state(STEP, "d")))


LOADERS = [
    Loader(
        "checkpoint",
        _make_checkpoints,
        ("checkpoints/step_*/*",),
        _read_checkpoint,
        None,
        _forge_checkpoint,
    ),
    Loader("checkpoint-names", _make_checkpoints, ("checkpoints/**/*",), _read_checkpoint),
    Loader(
        "export-weights", _make_export, ("export/*.safetensors",), _read_export, None, _forge_export
    ),
    Loader(
        "export-settings",
        _make_export,
        ("export/*.json",),
        _read_export,
        anything_goes,
        _forge_export,
    ),
    Loader("recipe", _make_recipe, ("recipe.yaml",), _read_recipe, anything_goes),
    Loader("recipe-with-base", _make_small_recipe, ("*.yaml",), _read_recipe, anything_goes),
    Loader("pipeline", _make_pipeline, ("*.yaml",), _read_pipeline, anything_goes),
    Loader("cluster", _make_cluster, ("*.yaml",), _read_cluster, anything_goes),
    Loader("deepspeed-file", _make_deepspeed, ("ds.json",), _read_deepspeed, anything_goes),
    Loader("evaluations", _make_evaluations, ("*.json",), _read_evaluations, anything_goes),
    Loader(
        "evaluations-by-impression",
        _make_evaluations,
        ("*.safetensors",),
        _read_evaluations,
        _is_told,
    ),
    Loader("truth", _make_truth, ("truth.json",), _read_truth, anything_goes),
    Loader(
        "prediction-zip",
        _make_prediction,
        ("*.zip", "*.tsv"),
        _scored("prediction.zip"),
        anything_goes,
    ),
    Loader(
        "prediction-text",
        _make_prediction,
        ("*.txt", "*.tsv"),
        _scored("prediction.txt"),
        anything_goes,
    ),
    Loader("runs", _make_runs, ("runs/a/*",), _read_runs, anything_goes),
    Loader("jobs-and-stamps", _make_jobs, ("**/*.json",), _read_jobs, anything_goes),
]
