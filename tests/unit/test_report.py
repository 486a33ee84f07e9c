"""The table over evaluations: spreads, gains, order, ceilings; and the plot's labels."""

import argparse
import builtins
import importlib.util
import json
from pathlib import Path

import pytest

from shards.errors import DamageError, DataError
from trainer.cli import report as report_cli
from trainer.cli.main import main
from trainer.evaluate import plot as plot_module
from trainer.evaluate.report import Spread, make_rows, read_ceilings, read_evaluations, table


def record(name: str, role: str, seed: int, auc: float, layers: int | None = None, **more) -> dict:
    values = {"auc": auc, "mrr": auc / 2, "ndcg5": auc / 3, "ndcg10": auc / 4}
    found = {
        "name": name,
        "role": role,
        "seed": seed,
        "metrics": values,
        "counts": {"impressions": 100, "skipped": 1, "articles": 50},
        "data": {"impressions": "sets/dev", "impressions_fingerprint": "f"},
    }
    if layers is not None:
        speed = {"device": "cpu", "articles_per_s": more.pop("rate", 10_000.0 / layers)}
        found |= {"layers": layers, "parameters": 31_920_292, "speed": speed}
    return found | more


RECORDS = [
    record("teacher", "teacher", 1, 0.70, 4),
    record("teacher", "teacher", 2, 0.72, 4),
    record("random", "baseline", 0, 0.5),
    record("student-2", "student", 0, 0.69, 2),
    record("student-1", "student", 0, 0.68, 1),
    record("student-1", "student", 1, 0.66, 1),
    record("plain-1", "plain", 0, 0.65, 1),
    record("plain-1", "plain", 1, 0.60, 1),
]


def test_spread_is_the_sample_standard_deviation():
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.std, spread.count) == (2.0, 1.0, 3)
    assert spread.text(2) == "2.00 ± 1.00"
    assert Spread.of([0.5]).text() == "0.5000"
    assert Spread.of([0.01]).text(sign=True) == "+0.0100"


def test_rows_average_a_name_and_stand_in_order():
    rows = make_rows(RECORDS)
    names = [row.name for row in rows]
    assert names == ["student-1", "student-2", "plain-1", "teacher", "random"]
    by_name = {row.name: row for row in rows}
    assert by_name["teacher"].metrics["auc"].mean == pytest.approx(0.71)
    assert by_name["teacher"].runs == 2
    assert by_name["random"].rate is None


def test_gain_is_paired_by_seed_within_the_same_depth():
    rows = {row.name: row for row in make_rows(RECORDS)}
    gain = rows["student-1"].gain
    assert gain is not None
    # 0.68 - 0.65 and 0.66 - 0.60, not the difference of the two means' spreads.
    assert gain.mean == pytest.approx(0.045)
    assert gain.std == pytest.approx(Spread.of([0.03, 0.06]).std)
    assert rows["student-2"].gain is None  # no plain model has two layers
    assert rows["plain-1"].gain is None


def test_gain_without_a_common_seed_is_the_difference_of_means():
    rows = make_rows([record("s", "student", 7, 0.7, 1), *RECORDS[6:]])
    gain = rows[0].gain
    assert gain is not None
    assert gain.mean == pytest.approx(0.7 - 0.625)
    # A teacher's "seed" is the number of its copy: never paired with a seed.
    teacher, plain = RECORDS[0], record("t", "plain", 1, 0.69, 4)
    gain = next(row.gain for row in make_rows([teacher, plain]) if row.role == "teacher")
    assert gain is not None
    assert (gain.mean, gain.count) == (pytest.approx(0.01), 1)


def test_table_shows_what_was_asked_for(tmp_path: Path):
    truth = tmp_path / "truth.json"
    names = ("auc", "mrr", "ndcg5", "ndcg10")
    truth.write_text(json.dumps({f"best_{name}": 0.9 for name in names}))
    shown = table(make_rows(RECORDS), read_ceilings(truth))
    lines = shown.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        *("model", "layers", "parameters", "AUC", "MRR", "nDCG@5", "nDCG@10"),
        *("vs. plain (AUC)", "articles/s", "runs"),
    ]
    student = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert student[:4] == ["student-1", "1", "31.92 M", "0.6700 ± 0.0141"]
    assert student[7:] == ["+0.0450 ± 0.0212", "10,000", "2"]
    assert [cell.strip() for cell in lines[-1].split("|")][1:5] == ["ceiling", "", "", "0.9000"]


def test_files_that_do_not_belong_are_refused(tmp_path: Path):
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="does not exist"):
        read_evaluations([path])
    with pytest.raises(DataError, match=r"is a folder; give the files in it: \S+/\*\.json$"):
        read_evaluations([tmp_path])
    path.write_text("[]")
    with pytest.raises(DataError, match="not a record"):
        read_evaluations([path])
    path.write_text(json.dumps(RECORDS[0]))
    other = tmp_path / "b.json"
    other.write_text(json.dumps(RECORDS[0] | {"data": {"impressions_fingerprint": "g"}}))
    with pytest.raises(DataError, match="2 different click logs"):
        read_evaluations([path, other])
    other.write_text(json.dumps(RECORDS[0] | {"data": {}}))
    with pytest.raises(DataError, match=r"b\.json does not name its click log"):
        read_evaluations([path, other])
    with pytest.raises(DataError, match="does not have a best AUC"):
        read_ceilings(path)


def test_evaluations_of_unlike_periods_are_refused(tmp_path: Path):
    def written(name: str, *period: str | None) -> Path:
        path = tmp_path / f"{name}.json"
        found = RECORDS[0] | ({"period": list(period)} if period else {})
        path.write_text(json.dumps(found | {"seed": len(name)}))
        return path

    old, whole = written("old"), written("whole", None, None)
    day, same_day = written("day", "2019-11-14", None), written("same", "2019-11-14T00:00", None)
    assert len(read_evaluations([old, whole])) == len(read_evaluations([day, same_day])) == 2
    with pytest.raises(
        DataError,
        match=r"of 2 different periods of the log: from 2019-11-14 .*/same\.json\); "
        r"the whole log \(.*/whole\.json\); report",
    ):
        read_evaluations([whole, day, same_day])
    # A wrong period is the file's mistake: nobody has given --since.
    for since, until, why in (
        ("soon", None, r"period: since is 'soon'; expected a date"),
        ("2019-11-15", "2019-11-14", r"period: since 2019-11-15 is not before period: until"),
    ):
        with pytest.raises(DamageError, match=rf"wrong\.json is not a record of .*{why}") as raised:
            read_evaluations([written("wrong", since, until)])
        assert "--" not in str(raised.value)


def test_an_evaluation_given_twice_is_not_two_runs(tmp_path: Path, capsys):
    first, _, random, *_ = paths = write_records(tmp_path, RECORDS)
    for again in (first, str(tmp_path / "." / "0.json")):
        assert main(["report", *paths, again]) == 1
        said = capsys.readouterr().err
        assert said == f"tnr: error: {again} holds the same evaluation as {first}; give it once\n"
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(RECORDS[0] | {"impressions_file": "copy.safetensors"}))
    assert main(["report", first, str(copy), "--compare"]) == 1
    assert "copy.json holds the same evaluation as" in capsys.readouterr().err
    assert main(["report", *paths]) == 0
    assert "count as runs" not in capsys.readouterr().err
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record("random", "baseline", 0, 0.51)))
    assert main(["report", *paths, str(other)]) == 0
    assert (
        f"tnr: warning: {random} and {other} are all named random, with seed 0, and count as runs "
        "of one model; if they are different models, evaluate each with its own --name\n"
    ) in capsys.readouterr().err


def test_texts_of_a_record_can_neither_command_a_terminal_nor_break_a_table(tmp_path, capsys):
    key = "S3CRET"
    hostile = record("a\x1b[2J|b\n# c $\\frac{$ " + f"https://u:{key}@h/x", "student", 0, 0.7, 2)
    hostile["speed"]["device"] = f"cpu\n\x1b]0;s3://ID:{key}@b"
    hostile["data"] |= {"impressions": f"s3://ID:{key}@bucket/dev\n"}
    hostile["segments"] = {
        f"kind\n{'s3://ID:' + key + '@b'}": {"part\x1b": {"impressions": 1, "auc": 1}}
    }
    plain = record("b", "plain", 0, 0.6, 2)
    paths, out = write_records(tmp_path, [hostile, plain]), tmp_path / "report.md"
    words = ["report", *paths, "--out", str(out)]
    if importlib.util.find_spec("matplotlib"):
        words += ["--plot", str(tmp_path / "plot.png")]
    assert main(words) == 0
    said = capsys.readouterr()
    for text in (said.out, said.err, out.read_text()):
        assert key not in text and "\x1b" not in text
    assert sum(line.startswith("| ") for line in said.out.splitlines()) == 4
    assert "| a\\x1b[2J\\|b\\n# c $\\frac{$ https://***@h/x |" in out.read_text()
    assert "Click log: s3://***@bucket/dev\\n, 100" in out.read_text()
    assert main(["report", *paths, "--against", "b"]) == 1
    assert key not in capsys.readouterr().err


def command(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    report_cli.register(parser.add_subparsers())
    arguments = parser.parse_args(["report", *words])
    return arguments.run(arguments)


def write_records(folder: Path, records: list[dict]) -> list[str]:
    paths = []
    for number, one in enumerate(records):
        path = folder / f"{number}.json"
        path.write_text(json.dumps(one))
        paths.append(str(path))
    return paths


def test_without_matplotlib_the_table_still_comes(tmp_path: Path, monkeypatch, capsys):
    real = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    out, png = tmp_path / "report.md", tmp_path / "plot.png"
    words = [*write_records(tmp_path, RECORDS), "--out", str(out), "--plot", str(png)]
    assert command(words) == 0
    said = capsys.readouterr()
    assert "| student-1" in said.out
    assert "pip install 'tiny-newsrec[report]'" in said.err
    assert "| student-1" in out.read_text()
    assert not png.exists()


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, option: str) -> None:
    if option == "--plot":
        pytest.importorskip("matplotlib")
    paths = write_records(tmp_path, RECORDS)
    for out in (tmp_path, Path(paths[0]) / "below" / "a file"):
        with pytest.raises(DataError, match=f"^{out} cannot be written: "):
            command([*paths, option, str(out)])


def test_plot_is_written_and_no_label_touches_another(tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    boxes = []
    real = plot_module._place

    def keep(label, *args):
        box = real(label, *args)
        boxes.append((label.get_text(), box))
        return box

    monkeypatch.setattr(plot_module, "_place", keep)
    crowded = [
        record(f"student-{n} with a long name", "student", 0, 0.68 + 0.0015 * n, 1, rate=9000.0 + n)
        for n in range(4)
    ]
    truth = tmp_path / "truth.json"
    names = ("auc", "mrr", "ndcg5", "ndcg10")
    truth.write_text(json.dumps({f"best_{name}": 0.725 for name in names}))
    png = tmp_path / "new" / "plot.png"
    paths = write_records(tmp_path, RECORDS + crowded)
    assert command([*paths, "--plot", str(png), "--ceiling", str(truth)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "plot of 8 models" in capsys.readouterr().out
    assert len(boxes) == 9  # eight models and the ceiling; random has no speed
    for number, (name, box) in enumerate(boxes):
        for other, former in boxes[:number]:
            assert plot_module._overlap(box, former) == 0, f"{name} touches {other}"
