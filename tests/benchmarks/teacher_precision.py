"""What storing teachers in float16 or int8 does to vectors, scores, weights and the loss.

    TNR_TEST_DATA=DATA TNR_TEST_ENCODERS=ENCODERS python tests/benchmarks/teacher_precision.py

Teachers: four copies of a short post-training of all-MiniLM-L6-v2 on press releases. Samples: a
body, its title and nine titles of the corpus. Compared with what the teachers say in float32: the
vectors (error relative to a vector's length), the scores (largest change, beside their usual size),
alpha (largest change of a teacher's weight on a sample), the order (samples whose highest score is
another title's), and the distillation loss of a student that has the first copy's vectors (relative
change of a batch of 32). Needs about 4 GiB.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from teacher_sets import identity_of, settings, small_set

from shards.columns import ColumnReader, describe
from shards.negatives import draw_negatives
from trainer.engine.distributed import start
from trainer.engine.trainer import Trainer
from trainer.losses.distillation import distillation
from trainer.losses.teacher_weights import soft_label, teacher_weights
from trainer.recipes.load import load_config
from trainer.tasks.build import build
from trainer.teacher_server.fill import FillRequest, fill
from trainer.teacher_server.storage import (
    DTYPES,
    SCALE,
    restore,
    store,
    vector_bytes,
)

BATCH, NEGATIVES, BODY, COPIES = 32, 9, 128, 4


def train_teachers(articles, run: Path, backbone: str, steps: int) -> list[str]:
    """Post-train, and return the copies."""
    words = settings(articles, run, backbone, 6)
    words += ["--data.max_body_tokens", str(BODY), "--run.max_steps", str(steps)]
    words += ["--run.global_batch", "16", "--run.micro_batch", "16", "--optimizer.lr", "1e-4"]
    words += ["--optimizer.backbone_lr", "1e-5", "--run.copies.rule", "every_k"]
    words += ["--run.copies.every", str(steps // COPIES), "--run.log_every", str(steps)]
    config = load_config("post_train", words)
    with start(config) as distributed:
        task = build(config)
        folder = Trainer(config, task.module, task.data, task.export, distributed).fit()
    return [str(copy) for copy in sorted((folder / "copies").iterdir())]


def exact_vectors(articles, teachers: list[str]) -> list[dict[str, np.ndarray]]:
    """Titles and bodies of every teacher in float32."""
    request = FillRequest(articles=articles, impressions=None, dtype="float32")
    fill(teachers, request, lambda line: None)
    rows = np.arange(articles.num_rows)
    found = []
    for teacher in teachers:
        made_from = identity_of(teacher, articles) | {"dtype": "float32"}
        column = ColumnReader.open(articles, "teacher-text", made_from)
        found.append({name: column.gather(name, rows) for name in ("title", "body")})
    return found


def stored_vectors(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """Vectors as they come back, in float32."""
    tensors = store("v", vectors, dtype)
    if dtype == "int8":
        return restore(tensors["v"], tensors["v" + SCALE])
    return tensors["v"].astype(np.float32)


def scores_of(said: list[dict[str, np.ndarray]], titles_NC: np.ndarray) -> torch.Tensor:
    """Scores [M, N, C] of every body with its titles."""
    return torch.stack(
        [
            torch.from_numpy(np.einsum("be,bce->bc", one["body"], one["title"][titles_NC]))
            for one in said
        ]
    )


def compare(exact: list[dict[str, np.ndarray]], titles_NC: np.ndarray) -> None:
    """Print a line a dtype."""
    scores = scores_of(exact, titles_NC)
    alpha = teacher_weights(scores)
    student = scores[0]
    soft = soft_label(scores, alpha)
    print(
        f"{len(titles_NC)} samples, {len(exact)} teachers; scores: own title "
        f"{scores[:, :, 0].mean():.1f}, others {scores[:, :, 1:].mean():.1f}, standard deviation "
        f"{scores.std():.1f}; alpha from {alpha.min():.3f} to {alpha.max():.3f}"
    )
    print(
        "| dtype | bytes a vector | vector, mean | score, mean | largest | alpha, mean | largest "
        "| top title changes | loss of a batch, mean | largest |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for dtype in DTYPES:
        read = [{name: stored_vectors(v, dtype) for name, v in one.items()} for one in exact]
        pairs = [(a[n], b[n]) for a, b in zip(exact, read, strict=True) for n in a]
        error = np.mean(
            [(np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)).mean() for a, b in pairs]
        )
        new_scores = scores_of(read, titles_NC)
        new_alpha = teacher_weights(new_scores)
        new_soft = soft_label(new_scores, new_alpha)
        flips = int((new_scores.argmax(2) != scores.argmax(2)).sum())
        change = []
        for begin in range(0, len(titles_NC) - BATCH + 1, BATCH):
            part = slice(begin, begin + BATCH)
            before = distillation(student[part], soft[part])
            change.append(abs(float(distillation(student[part], new_soft[part]) / before - 1)))
        by_score, by_alpha = (new_scores - scores).abs(), (new_alpha - alpha).abs()
        print(
            f"| {dtype} | {vector_bytes(exact[0]['title'].shape[1], dtype)} | {error:.1e} "
            f"| {by_score.mean():.1e} | {by_score.max():.1e} | {by_alpha.mean():.1e} "
            f"| {by_alpha.max():.1e} | {flips} of {scores[..., 0].numel()} "
            f"| {np.mean(change):.1e} | {np.max(change):.1e} |"
        )


def check_bytes(articles, teacher: str) -> None:
    """Size on disk of a teacher's column in every dtype, over the formula."""
    for dtype in DTYPES:
        fill([teacher], FillRequest(articles=articles, impressions=None, dtype=dtype), lambda _: _)
        made_from = identity_of(teacher, articles) | {"dtype": dtype}
        folder = describe(articles, "teacher-text", made_from).folder
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        formula = articles.num_rows * 2 * vector_bytes(256, dtype)
        print(f"bytes in {dtype}: {size:,}, formula {formula:,}: {size / formula:.4f}x")


def main() -> None:
    """Train teachers, fill, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=32, help="of the teachers' post-training")
    options = parser.parse_args()
    backbone = str(Path(os.environ["TNR_TEST_ENCODERS"]) / "all-MiniLM-L6-v2")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        articles = small_set(folder, options.articles, backbone)
        teachers = train_teachers(articles, folder / "run", backbone, options.steps)
        exact = exact_vectors(articles, teachers)
        rows = np.arange(articles.num_rows)
        drawn = draw_negatives(0, rows, np.zeros_like(rows), articles.num_rows, NEGATIVES)
        compare(exact, np.concatenate([rows[:, None], drawn], axis=1))
        check_bytes(articles, teachers[0])


if __name__ == "__main__":
    main()
