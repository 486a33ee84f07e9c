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
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from shards.build import build_impressions
from shards.errors import DataError
from trainer.cli import predict as predict_cli
from trainer.cli import score as score_cli
from trainer.evaluate.encode import bar
from trainer.evaluate.lines import (
    Line,
    labels_of_line,
    one_by_one,
    parse_labels,
    parse_ranks,
    ranks_of_line,
    read_lines,
)
from trainer.evaluate.metrics import ranking_metrics
from trainer.evaluate.prediction import (
    check_prediction,
    prediction_file,
    score_prediction,
    write_prediction,
)

SCORES = np.array([0.1, 0.9, 0.5, 2.0, 2.0, -1.0])
OFFSETS = np.array([0, 3, 6])


def command(module, name: str, words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    module.register(parser.add_subparsers())
    arguments = parser.parse_args([name, *words])
    return arguments.run(arguments)


def check(path: Path, ids: list[str], sizes: list[int] | np.ndarray) -> None:
    """Check a file as the one that was just written is."""
    shown = bar(len(sizes), "", "lines", False)
    check_prediction(path, (f"{one}\n".encode() for one in ids), np.asarray(sizes), shown)


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
        (["7", "a b"], SCORES, "contains a space"),
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
        ("7 [3,1,true]\n", "not a list of numbers"),
    ],
)
def test_validation_names_the_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "prediction.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        check(path, ["7", "8"], [3, 3])


def test_a_good_file_passes_validation(tmp_path: Path):
    write_prediction(tmp_path / "p.zip", ["7", "8"], SCORES, OFFSETS)
    check(tmp_path / "p.zip", ["7", "8"], [3, 3])
    lines = read_lines(prediction_file(tmp_path / "p.zip"))
    assert list(lines) == [(1, b"7 [3,1,2]"), (2, b"8 [2,1,3]")]


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


def labelled(folder: Path, truth: list[tuple[str, list[int]]]) -> Path:
    """A ``behaviors.tsv`` with these ids and labels."""
    path = folder / "behaviors.tsv"
    lines = []
    for one, labels in truth:
        items = " ".join(f"N{place}-{label}" for place, label in enumerate(labels))
        lines.append(f"{one}\tU1\t11/15/2019 8:55:22 AM\tN1 N2\t{items}\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("odd", [False, True], ids=["plain", "line by line"])
def test_scoring_treats_ties_gaps_and_empty_impressions_as_mind_does(tmp_path: Path, odd: bool):
    rng = np.random.default_rng(5)
    truth: list[tuple[str, list[int]]] = []
    lines: list[str] = []
    for number in range(30):
        size = int(rng.integers(2, 14))
        labels = [0] * size
        labels[int(rng.integers(size))] = 1
        ranks = rng.integers(1, 5, size).tolist()  # with ties
        if odd and number % 3 == 0:
            ranks = [rank + 0.5 for rank in ranks]  # a rank need not be whole for MIND's procedure
        if number in (4, 27):
            labels = []  # the line of the first is there, and is consumed without a look at it
            ranks = "nonsense" if number == 4 else ranks
        truth.append((f"I{number}", labels))
        inside = ",".join(map(str, ranks))
        lines.append(f"I{number} [{inside}]" if number != 4 else "no line at all")
    lines = lines[:25]  # the last five are missing, one of which nobody asks for
    path = tmp_path / "prediction.txt"
    path.write_text("\n".join(lines) + "\n")
    found = score_prediction(path, labelled(tmp_path, truth))
    assert (found.metrics.num_impressions, found.num_missing, found.has_more) == (28, 4, False)
    expected = mind_numbers(truth, lines)
    assert tuple(found.metrics.to_dict().values()) == pytest.approx(expected, abs=1e-12)


def test_scoring_goes_through_more_than_a_block(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("trainer.evaluate.prediction.BLOCK_LINES", 4)
    rng = np.random.default_rng(1)
    sizes = rng.integers(2, 9, 20)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    labels = [[1] + [0] * (size - 1) for size in sizes]
    scores = rng.normal(size=offsets[-1])
    path = tmp_path / "prediction.zip"
    write_prediction(path, (f"I{n}" for n in range(20)), scores, offsets)
    truth = labelled(tmp_path, [(f"I{n}", one) for n, one in enumerate(labels)])
    expected = ranking_metrics(scores, np.concatenate(labels), offsets)
    assert score_prediction(path, truth).metrics.to_dict() == expected.to_dict()
    text = zipfile.ZipFile(path).read("prediction.txt").decode()
    (tmp_path / "prediction.txt").write_text(text.replace("I13 ", "I14 "))
    with pytest.raises(DataError, match="line 14 is for impression I14, expected I13"):
        score_prediction(tmp_path / "prediction.txt", truth)
    with pytest.raises(DataError, match="line 14 is for impression I14, expected I13"):
        ids = [f"I{n}" for n in range(20)]
        check(tmp_path / "prediction.txt", ids, sizes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9 [1,2]", "line 1 is for impression 9, expected 1"),
        ("1 [1,2,3]", "line 1, impression 1: 3 ranks for 2 candidates"),
        ("1 [0,1]", "line 1, impression 1: rank 0 is not 1 or more"),
        ("1 [-1,1]", "rank -1 is not 1 or more"),
        ("1 [0.5,1]", "rank 0.5 is not 1 or more"),
        ("1 [NaN,1]", "rank nan is not 1 or more"),
        ("1 [1" + "0" * 400 + ",1]", "higher than any number"),
        ("1 [01,2]", "line 1 is"),
        ("1 [1, 2]", "3 fields separated by spaces"),
        ("1 [1,,2]", "line 1 is"),
        ("1 1,2", "line 1 is"),
        ("1 " + "[" * 100_000, "line 1 is"),
        ("", "line 1 is ''"),
    ],
)
def test_scoring_refuses_what_mind_refuses(tmp_path: Path, line: str, message: str):
    path = tmp_path / "prediction.txt"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=message):
        score_prediction(path, labelled(tmp_path, [("1", [0, 1])]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.lists(st.integers(0, 1200), max_size=6))),
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from("0159-., []\t\rNé")), max_size=2),
)
def test_a_block_reads_as_its_lines_do_one_by_one(lines, damage):
    for parse, form in (
        (parse_ranks, lambda ranks: f"[{','.join(map(str, ranks))}]"),
        (parse_labels, lambda ranks: "U\t\t\t" + " ".join(f"N{r}-{r % 2}" for r in ranks)),
    ):
        between = " " if parse is parse_ranks else "\t"
        texts = [f"{one}{between}{form(ranks)}" for one, ranks in lines]
        for place, letter in damage if texts else ():
            text = texts[place % len(texts)]
            at = place % (len(text) + 1)
            texts[place % len(texts)] = text[:at] + letter + text[at:]
        block = [Line(number, text.encode()) for number, text in enumerate(texts, 1)]
        alone, failed = [], False
        try:
            alone = [parse([line], "name") for line in block]
        except DataError:
            failed = True
        if failed:
            with pytest.raises(DataError):
                parse(block, "name")
            continue
        found = parse(block, "name")
        assert found.ids == [one for part in alone for one in part.ids]
        assert np.diff(found.offsets).tolist() == [len(part.values) for part in alone]
        assert found.values.tolist() == [v for part in alone for v in part.values.tolist()]
        slow = one_by_one(block, ranks_of_line if parse is parse_ranks else labels_of_line, "", "")
        assert (slow.ids, slow.values.tolist()) == (found.ids, found.values.tolist())
        assert slow.offsets.tolist() == found.offsets.tolist()


def test_a_zip_is_read_where_it_is(tmp_path: Path, monkeypatch):
    truth = labelled(tmp_path, [("1", [0, 1])])

    def zipped(*names: str) -> Path:
        path = tmp_path / "p.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "1 [2,1]\n")
        return path

    inside = (["prediction.txt"], ["res/prediction.txt", "__MACOSX/res/prediction.txt"])
    for names in (*inside, ["../../prediction.txt"]):
        assert score_prediction(zipped(*names), truth).metrics.auc == 1.0
    # Nothing is unpacked, so a path cannot leave the folder.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["behaviors.tsv", "p.zip"]
    with pytest.raises(DataError, match=r"a/prediction.txt, b/prediction.txt; expected one"):
        score_prediction(zipped("a/prediction.txt", "b/prediction.txt"), truth)
    with pytest.raises(DataError, match=r"prediction.txt, old/prediction.txt; expected one"):
        score_prediction(zipped("prediction.txt", "old/prediction.txt"), truth)
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        pytest.raises(DataError, match=r"holds prediction.txt, prediction.txt; expected one"),
    ):
        score_prediction(zipped("prediction.txt", "prediction.txt"), truth)
    # A member may say anything of its size: what is held of it is a row at most.
    monkeypatch.setattr("shards.sources.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("trainer.evaluate.lines.MAX_ROW_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("prediction.txt", b"1 [2,1" + b" " * 10_000_000)
    with pytest.raises(DataError, match=r"prediction.txt, line 1 has more than 1,000 bytes"):
        score_prediction(tmp_path / "p.zip", truth)


def test_files_that_are_no_prediction(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        prediction_file(tmp_path / "no.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(DataError, match=r"holds readme.txt; expected one prediction.txt"):
        prediction_file(tmp_path / "other.zip")


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


def test_labels_are_read_from_behaviors(tmp_path: Path):
    samples = impression_samples(12, 20)
    path = behaviors(tmp_path, samples)
    for source in (path, tmp_path):
        prediction = tmp_path / "prediction.txt"
        prediction.write_text("")
        found = score_prediction(prediction, source)
        assert found.num_missing == 12
    for text, message in (
        ("1\tU\t\tN1\tN2 N3\n", "behaviors.tsv, line 1 is .*a candidate has no label"),
        ("\n1\tU\tN2-1\n", "behaviors.tsv, line 2 is .*3 columns"),
        ("1\tU\t\t\tN1-0  N2-2\n", "a candidate has no label"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            score_prediction(prediction, path)


def test_what_scoring_passes_over_is_said(tmp_path: Path, capsys):
    path = tmp_path / "prediction.txt"
    path.write_text("1 [2,1]\n2 [1]\n3 [1,2]\n4 [1]\n")
    log = labelled(tmp_path, [("1", [0, 1]), ("2", [1])])
    assert command(score_cli, "score", [str(path), str(log)]) == 0
    said = capsys.readouterr()
    assert said.out == "AUC:1.0000\nMRR:1.0000\nnDCG@5:1.0000\nnDCG@10:1.0000\n"
    assert "1 impressions have only clicked" in said.err
    assert "has lines after the log's last" in said.err
    path.write_text("1 [2,1]\n")
    log = labelled(tmp_path, [("1", [0, 1]), ("2", [1, 0])])
    command(score_cli, "score", [str(path), str(log)])
    assert "the last 1 impressions have no line" in capsys.readouterr().err
    path.write_text("1 [1]\n")
    with pytest.raises(DataError, match="no impression with a clicked and an unclicked"):
        command(score_cli, "score", [str(path), str(labelled(tmp_path, [("1", [1])]))])


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


def test_lines_refused_by_the_build_get_a_line_of_ties(tmp_path: Path, capsys):
    world = make_world(tmp_path)
    path = behaviors(tmp_path, impression_samples(20, 40))
    lines = path.read_text().splitlines(keepends=True)
    lines.insert(3, "a\tU\t\t\tN1-0 N999-1 N2-0\n")  # not an article of the set
    lines.insert(9, "b\tU\t\t\t\n")  # without candidates
    lines.append("c\tU\t\t\tN1-1 N999-0\n")
    path.write_text("".join(lines))
    build_impressions([tmp_path], world.articles, tmp_path / "log")
    sets = ["--articles", str(world.articles.path), "--clicks", str(tmp_path / "log")]
    words = [world.teacher("finetune", 1), *sets, "--out", str(tmp_path / "p.zip")]
    assert command(predict_cli, "predict", words) == 0
    assert "3 of the log's 23 lines were refused" in capsys.readouterr().err
    with pytest.raises(DataError, match="line 4 is for impression 4, expected a"):
        score_prediction(tmp_path / "p.zip", path)
    assert command(predict_cli, "predict", [*words, "--behaviors", str(path)]) == 0
    said = capsys.readouterr()
    assert (said.err, "3 of them were refused" in said.out) == ("", True)
    text = zipfile.ZipFile(tmp_path / "p.zip").read("prediction.txt").decode().splitlines()
    assert (text[3], text[9], text[-1]) == ("a [3,2,1]", "b []", "c [2,1]")
    scored = score_prediction(tmp_path / "p.zip", path)
    assert (scored.metrics.num_impressions, scored.num_missing, scored.has_more) == (22, 0, False)
    path.write_text("".join(lines[1:]))
    with pytest.raises(DataError, match=r"impression 1 with . candidates is missing"):
        command(predict_cli, "predict", [*words, "--behaviors", str(path)])


def test_a_log_without_labels_can_be_predicted(tmp_path: Path):
    world = make_world(tmp_path)
    log = make_impressions(tmp_path / "test", world.articles, 9, labelled=False)
    out = tmp_path / "prediction.zip"
    words = ["--articles", str(world.articles.path), "--clicks", str(log.path), "--out", str(out)]
    assert command(predict_cli, "predict", [world.teacher("finetune", 1), *words]) == 0
    sizes = [len(sample["candidates"]) for sample in log]
    check(out, [sample["id"] for sample in log], sizes)
