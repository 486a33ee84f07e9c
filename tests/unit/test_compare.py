"""Results by impression, models before the same resampled users, and `tnr report` about them."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.per_impression import write_evaluation
from helpers.world import make_world
from safetensors.numpy import load_file, save_file

from shards.errors import DamageError, DataError, UsageError
from trainer.cli import report as report_cli
from trainer.evaluate import compare as compare_module
from trainer.evaluate import plot as plot_module
from trainer.evaluate.bootstrap import (
    RESAMPLES,
    UserSums,
    intervals,
    resampled_means,
    sign_flip_test,
)
from trainer.evaluate.compare import compare, per_impression_models, resample
from trainer.evaluate.evaluate import EvaluateOptions, evaluate_baseline
from trainer.evaluate.per_impression import of_record, read_per_impression
from trainer.evaluate.report import Spread, make_rows, read_evaluations
from trainer.evaluate.text_report import segment_tables

USERS = np.repeat(np.arange(40, dtype=np.int32), 5)
NOISE = np.random.default_rng(0).normal(0, 0.05, (4, 200))
BASE = 0.6 + np.random.default_rng(1).normal(0, 0.1, 40)[USERS]
"""What all models share: easy users and hard ones."""


def record(name: str, seed: int = 0, role: str = "student", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "seed": seed,
        "layers": 2,
        "counts": {"impressions": 200, "skipped": 0, "articles": 50},
        "data": {"impressions": "sets/dev", "impressions_fingerprint": "f" * 64},
    } | more


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two runs of ``ours``, two of ``theirs``: 0.02 apart, under much larger noise of users."""

    def write(name: str, seed: int, auc: np.ndarray) -> str:
        return write_evaluation(tmp_path / f"{name}-{seed}.json", record(name, seed), USERS, auc)

    return [
        write("ours", 0, BASE + NOISE[0] + 0.03),
        write("ours", 1, BASE + NOISE[1] + 0.01),
        write("theirs", 0, BASE + NOISE[2]),
        write("theirs", 1, BASE + NOISE[3]),
    ]


def command(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    report_cli.register(parser.add_subparsers())
    arguments = parser.parse_args(["report", *words])
    return arguments.run(arguments)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_runs_are_averaged_and_compared_before_the_same_users(files: list[str]):
    records = read_evaluations(files)
    models, lacking = per_impression_models(records)
    assert [model.name for model in models] == ["ours", "theirs"]
    assert lacking == []
    ours, theirs = BASE + NOISE[:2].mean(axis=0) + 0.02, BASE + NOISE[2:].mean(axis=0)
    resampled = resample(models, 500)
    found = compare(resampled, records, "ours", "theirs")
    auc = found.metrics["auc"]
    assert (auc.first, auc.second) == (pytest.approx(ours.mean()), pytest.approx(theirs.mean()))
    # The same as resampling the differences themselves: shared users, shared draws.
    alone = UserSums.of(USERS, (ours - theirs)[:, None])
    assert auc.interval == pytest.approx(intervals(resampled_means(alone, 500))[0])
    width = auc.interval.high - auc.interval.low
    single = resampled.intervals()["ours"]["auc"]
    assert width < 0.5 * (single.high - single.low)
    assert auc.interval.low > 0
    assert auc.p == pytest.approx(1 / 501)
    assert found.metrics["mrr"].interval == pytest.approx(tuple(np.array(auc.interval) / 2))
    by_seed = [(NOISE[0] - NOISE[2]).mean() + 0.03, (NOISE[1] - NOISE[3]).mean() + 0.01]
    assert auc.by_seed is not None
    assert auc.by_seed.mean == pytest.approx(np.mean(by_seed))
    assert auc.by_seed.std == pytest.approx(Spread.of(by_seed).std)
    assert (found.num_users, found.num_impressions, found.runs) == (40, 200, (2, 2))


def test_noise_alone_is_no_difference_and_one_pair_has_no_spread(files: list[str]):
    for place, name in enumerate(("first", "second")):
        write_evaluation(Path(files[place]), record(name), USERS, BASE + NOISE[place])
    records = read_evaluations(files[:2])
    models, _ = per_impression_models(records)
    auc = compare(resample(models, 500), records, "first", "second").metrics["auc"]
    flipped = sign_flip_test(UserSums.of(USERS, (NOISE[0] - NOISE[1])[:, None]), 500)
    assert auc.p == pytest.approx(float(flipped[0])) and auc.p > 0.05
    assert auc.by_seed is None


def test_command_prints_and_writes_the_comparison(files: list[str], tmp_path: Path, capsys):
    out = tmp_path / "report.md"
    assert command([*files, "--compare", "--resamples", "400", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    place = lines.index("ours minus theirs: 200 impressions of 40 users")
    head, _, auc, *_ = lines[place + 2 :]
    assert cells(head) == [
        *("metric", "ours", "theirs", "difference", "95% interval", "p", "by seed")
    ]
    ours, theirs = (BASE + NOISE[:2].mean(0) + 0.02).mean(), (BASE + NOISE[2:].mean(0)).mean()
    assert cells(auc)[:4] == ["AUC", f"{ours:.4f}", f"{theirs:.4f}", f"{ours - theirs:+.4f}"]
    assert cells(auc)[5] == "0.0025"
    assert "ours is the mean of 2 runs, theirs is the mean of 2 runs" in said
    assert "not the training" in said
    assert "AUC, 95% interval" in lines[0]
    written = out.read_text()
    assert "ours minus theirs" in written
    assert "## 95% intervals" in written
    assert "percentiles of 400 resamples" in written
    # The other way round: the first one given is the first.
    assert command([*files[2:], *files[:2], "--compare", "--resamples", "400"]) == 0
    again = capsys.readouterr().out
    assert f" {theirs - ours:+.4f} |" in again


def test_against_compares_all_others_with_one(files: list[str], tmp_path: Path, capsys):
    third = write_evaluation(tmp_path / "third.json", record("third"), USERS, BASE)
    assert command([*files, third, "--against", "theirs", "--resamples", "200"]) == 0
    said = capsys.readouterr().out
    assert "ours minus theirs" in said
    assert "third minus theirs" in said
    assert "These are 2 comparisons" in said
    with pytest.raises(
        UsageError, match="no evaluation is named 'none'; expected one of ours, theirs"
    ):
        command([*files, "--against", "none"])
    with pytest.raises(UsageError, match="third is the only evaluation"):
        command([third, "--against", "third"])
    with pytest.raises(UsageError, match=r"are of 3 \(ours, theirs, third\); with more, --against"):
        command([*files, third, "--compare"])
    for words in (["--compare", "--resamples", "0"], ["--resamples", "-1"]):
        with pytest.raises(UsageError, match="--resamples is"):
            command([*files, *words])


def test_two_runs_of_one_name_are_told_apart_by_their_files(files: list[str], capsys):
    assert command([*files[:2], "--compare", "--resamples", "200"]) == 0
    said = capsys.readouterr().out
    assert f"ours ({files[0]}) minus ours ({files[1]})" in said
    assert "by seed" not in said


def test_a_teachers_copies_are_not_paired_by_seed(tmp_path: Path):
    paths = [
        write_evaluation(tmp_path / f"{name}{n}.json", record(name, n, role), USERS, BASE + n)
        for name, role in (("teacher", "teacher"), ("plain", "plain"))
        for n in range(2)
    ]
    records = read_evaluations(paths)
    resampled = resample(per_impression_models(records)[0], 50)
    assert compare(resampled, records, "teacher", "plain").metrics["auc"].by_seed is None


def test_models_without_results_by_impression(files: list[str], tmp_path: Path, capsys):
    plain = tmp_path / "old.json"
    values = json.loads(Path(files[0]).read_text())["metrics"]
    plain.write_text(json.dumps(record("old", role="plain") | {"metrics": values}))
    half = tmp_path / "half.json"
    half.write_text(json.dumps(record("theirs", seed=2) | {"metrics": values}))
    assert command([*files, str(plain), str(half), "--resamples", "50"]) == 0
    said = capsys.readouterr()
    assert "no interval for theirs: only 2 of its 3 runs" in said.err
    rows = {cells(line)[0]: cells(line) for line in said.out.splitlines()}
    place = rows["model"].index("AUC, 95% interval")
    assert rows["ours"][place].startswith("[0.")
    assert rows["old"][place] == rows["theirs"][place] == ""
    with pytest.raises(DataError, match="no results by impression of old"):
        command([files[0], str(plain), "--compare"])
    # None has any: the table is what it was, and nothing is said.
    assert command([str(plain)]) == 0
    said = capsys.readouterr()
    assert "interval" not in said.out + said.err
    # A record that was copied without its file still stands in the table.
    Path(files[0]).with_suffix(".impressions.safetensors").unlink()
    assert command(files[:2]) == 0
    assert "no interval for ours" in capsys.readouterr().err


def test_one_user_is_no_sample_of_users(tmp_path: Path, capsys):
    users = np.zeros(200, dtype=np.int32)
    paths = [
        write_evaluation(tmp_path / f"{name}.json", record(name), users, BASE) for name in "ab"
    ]
    assert command(paths) == 0
    said = capsys.readouterr()
    assert "all impressions belong to one user" in said.err
    assert "interval" not in said.out
    with pytest.raises(DataError, match="belong to one user"):
        command([*paths, "--compare"])


def test_what_is_not_of_the_same_impressions_is_refused(files: list[str], tmp_path: Path):
    def other(**given: Any) -> list[str]:
        users = given.pop("users", USERS)
        data = {"data": {"impressions_fingerprint": given.get("clicks", "f" * 64)}}
        path = tmp_path / "other.json"
        return [files[0], write_evaluation(path, record("other") | data, users, BASE, **given)]

    with pytest.raises(DataError, match="2 different click logs"):
        command([*other(clicks="g" * 64), "--compare"])
    rows = np.arange(200)
    rows[150:] += 1
    with pytest.raises(DataError, match=r"different impressions: 200 and 200, .* has row 150"):
        command([*other(rows=rows), "--compare"])
    with pytest.raises(DataError, match="different users for row 17;"):
        command([*other(users=np.where(rows == 17, 39, USERS)), "--compare"])
    fewer = write_evaluation(tmp_path / "c.json", record("c"), USERS[1:], BASE[1:], rows=rows[1:])
    with pytest.raises(DataError, match="200 and 199, and only one of them has row 0"):
        command([other(rows=rows)[1], fewer])
    mine, its = (
        read_per_impression(Path(f).with_suffix(".impressions.safetensors"))
        for f in other(clicks="g" * 64)
    )
    with pytest.raises(
        DataError, match=r"different click logs \(ffffffffffff… and gggggggggggg…\)"
    ):
        mine.check_same(its)


def test_a_file_that_is_not_the_records_is_refused(files: list[str]):
    path = Path(files[0])
    beside = path.with_suffix(".impressions.safetensors")
    tensors, good = load_file(beside), json.loads(path.read_text())
    clicks = {"format": "1", "clicks": "f" * 64}

    def refused(error: type[Exception], match: str, metadata: dict[str, str], **changed: Any):
        kept = {key: value for key, value in (tensors | changed).items() if value is not None}
        save_file(kept, beside, metadata=metadata)
        with pytest.raises(error, match=match):
            of_record(good, path)

    refused(DataError, "belongs to click log e", clicks | {"clicks": "e" * 64})
    refused(DataError, "format '2', expected '1'", clicks | {"format": "2"})
    refused(DamageError, "has a mean auc of", clicks, auc=tensors["auc"] + 1e-6)
    refused(DamageError, "has no mrr, user", clicks, mrr=None, user=None)
    refused(
        DamageError,
        r"row is int32\[200\], expected int64",
        clicks,
        row=tensors["row"].astype(np.int32),
    )
    refused(DamageError, r"auc is float64\[199\]", clicks, auc=tensors["auc"][1:].copy())
    refused(DamageError, "rows are not ascending", clicks, row=tensors["row"][::-1].copy())
    refused(DamageError, "ndcg5 is not finite", clicks, ndcg5=tensors["ndcg5"] * np.nan)
    refused(
        DataError,
        "has no impressions",
        clicks,
        **{key: value[:0] for key, value in tensors.items()},
    )
    # Users that changed places leave the means alone; the hash tells.
    save_file(tensors, beside, metadata=clicks)
    good["impressions_sha256"] = hashlib.sha256(beside.read_bytes()).hexdigest()
    assert of_record(good, path) is not None
    refused(DamageError, "its sha256 differs", clicks, user=tensors["user"][::-1].copy())
    beside.write_bytes(b"no safetensors")
    with pytest.raises(DamageError, match="cannot be read"):
        of_record(good, path)


def test_segments_stand_side_by_side():
    def part(impressions: int, auc: float) -> dict[str, float]:
        return {"impressions": impressions, "auc": auc}

    first = record("a", metrics=dict.fromkeys(("auc", "mrr", "ndcg5", "ndcg10"), 0.5))
    first["segments"] = {
        "history": {"0": part(10, 0.5), "1-5": part(90, 0.7)},
        "cold": {"cold_candidates_share": 0.25, "clicked_all_cold": part(3, 0.4)},
        "category": {"sports": part(7, 0.5)},
    }
    again = first | {"segments": {"history": {"0": part(10, 0.6)}}}
    other = first | {"name": "b", "segments": {"history": {"1-5": part(90, 0.8)}}}
    tables = dict(segment_tables(make_rows([first, again, other]), [first, again, other]))
    assert list(tables) == [
        *(
            "Clicks in the user's history",
            "News not seen in training",
            "Category of the clicked article",
        )
    ]
    head, _, *lines = tables["Clicks in the user's history"].splitlines()
    assert cells(head) == ["", "impressions", "a", "b"]
    assert [cells(line) for line in lines] == [
        ["0", "10", "0.5500", ""],
        ["1-5", "90", "0.7000", "0.8000"],
    ]
    cold = tables["News not seen in training"].splitlines()
    assert cells(cold[2]) == ["all clicked are cold", "3", "0.4000"]
    assert cold[3:] == ["", "25.0% of the candidates are cold."]
    assert cells(tables["Category of the clicked article"].splitlines()[2])[:2] == ["sports", "7"]


def test_what_an_evaluation_writes_can_be_compared(tmp_path: Path, capsys):
    world = make_world(tmp_path / "world")
    paths = []
    for seed in (1, 2):
        options = EvaluateOptions(name=f"random-{seed}", seed=seed)
        sets = (world.articles.path, world.impressions.path)
        paths.append(tmp_path / f"{seed}.json")
        evaluate_baseline("random", *sets, options).write(paths[-1])
    assert command([*map(str, paths), "--compare", "--resamples", "100"]) == 0
    users = len({sample["user"] for sample in world.impressions})
    said = capsys.readouterr().out
    assert f"random-1 minus random-2: 60 impressions of {users} users" in said


def test_bars_of_the_plot_are_intervals_and_spreads(files: list[str], tmp_path: Path, capsys):
    records = read_evaluations(files)
    for one in records:
        one["speed"] = {"device": "cpu", "articles_per_s": 100.0}
    bounds = resample(per_impression_models(records)[0], 200).intervals()
    rows = make_rows(records, bounds)
    drawn = []

    class Axes:
        def errorbar(self, x, y, **options):
            drawn.append((y, options))

    plot_module._draw_points(Axes(), rows, "o", "black", "students")
    (_, broad), (heights, thin) = drawn
    assert broad["yerr"] == [row.metrics["auc"].std for row in rows]
    for place, row in enumerate(rows):
        low, high = bounds[row.name]["auc"]
        assert heights[place] - thin["yerr"][0][place] == pytest.approx(low)
        assert heights[place] + thin["yerr"][1][place] == pytest.approx(high)
        assert plot_module._reach(row) == pytest.approx((low, high))
    assert plot_module._bars(rows) == (
        "thin bars: 95% interval over users; broad bars: ± standard deviation over runs"
    )
    assert plot_module._bars(make_rows(records[:1])) == ""

    pytest.importorskip("matplotlib")
    for path, one in zip(files, records, strict=True):
        Path(path).write_text(json.dumps(one))
    assert command([*files, "--plot", str(tmp_path / "plot.png"), "--resamples", "50"]) == 0
    assert "plot of 2 models" in capsys.readouterr().out


def test_help_names_the_number_of_resamples(capsys):
    parser = argparse.ArgumentParser()
    report_cli.register(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["report", "--help"])
    assert f"(default: {RESAMPLES})" in " ".join(capsys.readouterr().out.split())


def test_names_stay_whole_in_the_table():
    table = compare_module.align(["a|b", "c"], [["1", "2"]])
    assert table.splitlines()[0] == "| a\\|b | c |"
