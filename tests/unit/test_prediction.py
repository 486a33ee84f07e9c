"""MIND's prediction file: what is written, what is refused, and how any file is scored."""

import argparse
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.sets import impression_samples, make_impressions
from helpers.world import make_world
from sklearn.metrics import roc_auc_score

from shards.errors import DataError
from trainer.cli import predict as predict_cli
from trainer.cli import score as score_cli
from trainer.evaluate.prediction import (
    read_lines,
    score_prediction,
    validate_prediction,
    write_prediction,
)
from trainer.evaluate.truth import read_truth

SCORES = np.array([0.1, 0.9, 0.5, 2.0, 2.0, -1.0])
OFFSETS = np.array([0, 3, 6])


def command(module, name: str, words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    module.register(parser.add_subparsers())
    arguments = parser.parse_args([name, *words])
    return arguments.run(arguments)


def test_format_is_mind_s_and_bytes_repeat(tmp_path: Path):
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    write_prediction(one, ["7", "8"], SCORES, OFFSETS)
    with zipfile.ZipFile(one) as archive:
        assert archive.namelist() == ["prediction.txt"]
        # Of the two equal scores the later candidate ranks first, as in the metrics.
        assert archive.read("prediction.txt") == b"7 [3,1,2]\n8 [2,1,3]\n"
    write_prediction(two, ["7", "8"], SCORES, OFFSETS)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        (["7"], SCORES, "1 impression ids for 2"),
        (["7", "a b"], SCORES, "has a space"),
        (["7", ""], SCORES, "is empty"),
        (["7", "8"], np.array([1, 2, 3, np.nan, 1, 2.0]), "impression 8: 1 scores are not finite"),
    ],
)
def test_nothing_is_written_when_it_cannot_be_right(tmp_path: Path, ids, scores, message):
    with pytest.raises(DataError, match=message):
        write_prediction(tmp_path / "p.zip", ids, scores, OFFSETS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7 [3,1,2]\n", "1 lines for the log's 2"),
        ("7 [3,1,2]\n8 [2,1,3]\n9 [1]\n", "line 3 is one more"),
        ("7 [3,1,2]\n9 [2,1,3]\n", "line 2 is for impression 9, expected 8"),
        ("7 [3,1,2]\n8 [2,1]\n", "line 2, impression 8: ranks must be 1 to 3"),
        ("7 [3,1,2]\n8 [2,1,2]\n", "ranks must be 1 to 3"),
        ("7 [3, 1, 2]\n8 [2,1,3]\n", "line 1 is '7 \\[3, 1, 2\\]'"),
        ("7 3,1,2\n", "line 1"),
        ("7 [3,1,true]\n", "no list of numbers"),
    ],
)
def test_validation_names_the_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "prediction.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        validate_prediction(path, ["7", "8"], [3, 3])


def test_a_good_file_passes_validation(tmp_path: Path):
    write_prediction(tmp_path / "p.zip", ["7", "8"], SCORES, OFFSETS)
    validate_prediction(tmp_path / "p.zip", ["7", "8"], [3, 3])
    assert list(read_lines(tmp_path / "p.zip")) == ["7 [3,1,2]", "8 [2,1,3]"]


def mind_numbers(truth: list[tuple[str, list[int]]], lines: list[str]) -> tuple[float, ...]:
    """The published procedure, line by line, with its own treatment of gaps."""
    sums = np.zeros(4)
    count = 0
    for place, (_, labels) in enumerate(truth):
        if not labels:
            continue
        ranks = json.loads(lines[place].split()[1]) if place < len(lines) else [1] * len(labels)
        scores = [1.0 / rank for rank in ranks]
        order = np.argsort(scores, kind="stable")[::-1]
        sorted_labels = np.array(labels)[order]
        ideal = sorted(labels, reverse=True)

        def dcg(values, k: int) -> float:
            return sum((2**y - 1) / math.log2(i + 2) for i, y in enumerate(values[:k]))

        sums += (
            roc_auc_score(labels, scores),
            sum(y / (i + 1) for i, y in enumerate(sorted_labels)) / sum(labels),
            dcg(sorted_labels, 5) / dcg(ideal, 5),
            dcg(sorted_labels, 10) / dcg(ideal, 10),
        )
        count += 1
    return tuple(sums / count)


def test_scoring_treats_ties_gaps_and_empty_impressions_as_mind_does(tmp_path: Path):
    rng = np.random.default_rng(5)
    truth: list[tuple[str, list[int]]] = []
    lines: list[str] = []
    for number in range(30):
        size = int(rng.integers(2, 14))
        labels = [0] * size
        labels[int(rng.integers(size))] = 1
        ranks = rng.integers(1, 5, size).tolist()  # with ties
        if number == 4:
            labels = []
        truth.append((f"I{number}", labels))
        lines.append(f"I{number} [{','.join(map(str, ranks))}]")
    lines = lines[:25]  # the last five are missing
    path = tmp_path / "prediction.txt"
    path.write_text("\n".join(lines) + "\n")
    found = score_prediction(path, truth)
    assert found.num_impressions == 29
    expected = mind_numbers(truth, lines)
    assert tuple(found.to_dict().values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9 [1,2]", "is for impression 9, expected 1"),
        ("1 [1,2,3]", "3 ranks for 2 candidates"),
        ("1 [0,1]", "rank 0 is below 1"),
        ("", "line 1 is ''"),
    ],
)
def test_scoring_refuses_what_mind_refuses(tmp_path: Path, line: str, message: str):
    path = tmp_path / "prediction.txt"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=message):
        score_prediction(path, [("1", [0, 1])])


def test_files_that_are_no_prediction(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        list(read_lines(tmp_path / "no.zip"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(DataError, match=r"holds readme.txt; expected prediction.txt"):
        list(read_lines(tmp_path / "other.zip"))


def behaviors(folder: Path, samples: list[dict]) -> Path:
    path = folder / "behaviors.tsv"
    rows = []
    for one in samples:
        pairs = zip(one["candidates"], one["clicks"], strict=True)
        items = " ".join(f"N{row}-{click}" for row, click in pairs)
        history = " ".join(f"N{row}" for row in one["history"])
        rows.append("\t".join((one["id"], one["user"], one["time"], history, items)))
    path.write_text("\n".join(rows) + "\n")
    return path


def test_truth_is_read_from_behaviors(tmp_path: Path):
    samples = impression_samples(12, 20)
    path = behaviors(tmp_path, samples)
    assert list(read_truth(path)) == [(one["id"], one["clicks"]) for one in samples]
    assert list(read_truth(tmp_path)) == list(read_truth(path))
    path.write_text("1\tU\t\tN1\tN2 N3\n")
    with pytest.raises(DataError, match="line 1: a candidate has no label"):
        list(read_truth(path))
    path.write_text("1\tU\tN2-1\n")
    with pytest.raises(DataError, match="line 1 has 3 columns"):
        list(read_truth(path))


def test_predict_then_score_gives_the_metrics_of_the_model(tmp_path: Path, capsys):
    world = make_world(tmp_path)
    export = world.teacher("finetune", 1)
    sets = ["--articles", str(world.articles.path), "--clicks", str(world.impressions.path)]
    out = tmp_path / "sub" / "prediction.zip"
    assert command(predict_cli, "predict", [export, *sets, "--out", str(out)]) == 0
    log = behaviors(tmp_path, impression_samples(60, 40))
    capsys.readouterr()
    assert command(score_cli, "score", [str(out), str(log)]) == 0
    printed = dict(line.split(":") for line in capsys.readouterr().out.split())

    from trainer.evaluate.evaluate import EvaluateOptions, evaluate_model

    evaluation = evaluate_model(
        export, world.articles.path, world.impressions.path, EvaluateOptions(speed_s=0)
    )
    for label, name in (("MRR", "mrr"), ("nDCG@5", "ndcg5"), ("nDCG@10", "ndcg10"), ("AUC", "auc")):
        assert float(printed[label]) == pytest.approx(evaluation.record["metrics"][name], abs=6e-5)


def test_a_log_without_labels_can_be_predicted(tmp_path: Path):
    world = make_world(tmp_path)
    log = make_impressions(tmp_path / "test", world.articles, 9, labelled=False)
    out = tmp_path / "prediction.zip"
    words = ["--articles", str(world.articles.path), "--clicks", str(log.path), "--out", str(out)]
    assert command(predict_cli, "predict", [world.teacher("finetune", 1), *words]) == 0
    sizes = [len(sample["candidates"]) for sample in log]
    validate_prediction(out, [sample["id"] for sample in log], sizes)
