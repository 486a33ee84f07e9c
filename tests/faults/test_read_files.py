"""Files that lists and reports read, malformed in every way: one line, the rest shown, no hang."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from launchers.jobs import JobBook
from launchers.stamps import Stamp, Stamps, State
from launchers.status import status_rows, table
from launchers.steps import Step
from trainer.cli.main import main
from trainer.errors import DataError, TinyNewsRecError
from trainer.evaluate.impressions import FORMAT
from trainer.evaluate.per_impression import read_per_impression

LIMIT_S = 10
STATE = {"state": "finished", "step": 5, "steps": 20}
RECORD = {
    "name": "student",
    "role": "student",
    "seed": 1,
    "layers": 2,
    "parameters": 1000,
    "metrics": {"auc": 0.7, "mrr": 0.3, "ndcg5": 0.3, "ndcg10": 0.4},
    "speed": {"articles_per_s": 100.0, "device": "cpu"},
    "counts": {"impressions": 9, "skipped": 1, "articles": 7},
    "data": {"impressions": "dev", "impressions_fingerprint": "f"},
    "period": [None, "2019-11-14"],
    "segments": {"cold": {"cold": {"impressions": 3, "auc": 0.5}, "cold_candidates_share": 0.5}},
}
STAMP = Stamp(step="a", digest="d", state=State.DONE, command="tnr", start=1.0, end=2.0).to_dict()
METRICS = {"step": 7, "time": 1e9, "train/loss": 0.5, "speed/samples_per_s": 10.0}

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, -1, float("nan"), float("inf"), 1e308, -0.5]),
    st.floats(),
    st.text(max_size=5),
    st.just("\x1b[2J\n"),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@contextmanager
def time_limit() -> Iterator[None]:
    """Fail what hangs: a FIFO that is read has no end."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"not done after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def text(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data) and None


MALFORMED: dict[str, Callable[[Path], None]] = {
    "empty": text(""),
    "binary": text(bytes(range(256)) * 4),
    "a list": text("[]"),
    "a number": text("7"),
    "null": text("null"),
    "deep": text("[" * 100_000 + "]" * 100_000),
    "deep object": text('{"a":' * 50_000 + "1" + "}" * 50_000),
    "huge number": text('{"step": ' + "9" * 5000 + "}"),
    "utf-16": lambda path: path.write_bytes(json.dumps(STATE).encode("utf-16")) and None,
    "a FIFO": a_fifo,
    "a folder": a_folder,
}


def mutated(whole: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The object with one value, at any depth, of another type, missing or extra."""
    places: list[tuple[str, ...]] = []

    def walk(value: Any, place: tuple[str, ...]) -> None:
        places.append(place)
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, (*place, key))

    walk(whole, ())

    def change(place: tuple[str, ...], value: Any, drop: bool) -> dict[str, Any]:
        copied = json.loads(json.dumps(whole))
        at = copied
        for key in place[:-1]:
            at = at[key]
        if drop:
            del at[place[-1]]
        else:
            at[place[-1]] = value
        return copied

    return st.builds(change, st.sampled_from(places[1:]), _VALUES, st.booleans())


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"task": "post_train"}))
    (folder / "state.json").write_text(json.dumps(STATE))
    (folder / "metrics.jsonl").write_text(json.dumps(METRICS) + "\n")
    (folder / "starts.jsonl").write_text('{"host": "node7"}\n')
    return folder


def put(path: Path, malformed: str) -> None:
    path.unlink(missing_ok=True)
    MALFORMED[malformed](path)


@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize("name", ["state.json", "config.json", "metrics.jsonl", "starts.jsonl"])
def test_a_damaged_run_is_named_and_the_others_are_listed(
    name: str, malformed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "whole")
    put(make_run(tmp_path / "broken") / name, malformed)
    with time_limit():
        assert main(["runs", str(tmp_path)]) == 0
        assert main(["runs", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "finished" in next(line for line in out.splitlines() if line.startswith("whole"))
    broken = next(line for line in out.splitlines() if line.startswith("broken"))
    # Lines of a file of lines count as not there; any other file makes the run damaged.
    lines_only = name.endswith(".jsonl") and malformed not in ("a FIFO", "a folder")
    if lines_only:
        assert "finished" in broken and not err
    else:
        assert "damaged" in broken
        assert err.count("\n") == 2 and name in err and "Traceback" not in err


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(state=mutated(STATE), record=mutated(METRICS))
def test_runs_of_any_types_are_listed(
    state: dict[str, Any], record: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    if not folder.exists():
        make_run(folder)
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "metrics.jsonl").write_text(json.dumps(record))
    assert main(["runs", str(tmp_path)]) == 0
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2


@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize("option", ["evaluation", "--ceiling"])
def test_a_malformed_evaluation_is_one_line(
    option: str, malformed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.json").write_text(json.dumps(RECORD))
    put(tmp_path / "bad.json", malformed)
    words = ["report", str(tmp_path / "good.json")]
    words += (
        [str(tmp_path / "bad.json")]
        if option == "evaluation"
        else [option, str(tmp_path / "bad.json")]
    )
    with time_limit():
        assert main(words) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "bad.json" in err and err.startswith("tnr: error: ")


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(record=mutated(RECORD))
def test_evaluations_of_any_types_are_reported_or_refused(
    record: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    path, out = tmp_path / "bad.json", tmp_path / "report.md"
    path.write_text(json.dumps(record))
    code = main(["report", str(path), "--out", str(out), "--resamples", "0"])
    err = capsys.readouterr().err
    assert code == 0 or (code in (1, 2) and err.count("\n") == 1), err


STEP = Step(name="a", command=("tnr", "train", "post_train"), output="nowhere")


@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize(
    "name", ["a.json", "slurm/jobs.json", "run/state.json", "run/metrics.jsonl"]
)
def test_the_status_names_what_is_damaged_and_shows_the_rest(
    name: str, malformed: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "slurm").mkdir()
    (tmp_path / "b.json").write_text(json.dumps(STAMP | {"step": "b"}))
    put(tmp_path / name, malformed)
    steps = [
        Step(name="a", command=("tnr", "train", "post_train"), output=str(run)),
        Step(name="b", command=("tnr", "shards", "build")),
    ]
    with time_limit():
        shown = table(status_rows(steps, {"a": "d", "b": "d"}, tmp_path, None))
    first, second = shown.splitlines()[1:]
    assert "done" in second
    if name in ("a.json", "run/state.json"):
        assert Path(name).name in first


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stamp=mutated(STAMP), jobs=mutated({"a": {"job": "1", "digest": "d"}}))
def test_stamps_and_jobs_of_any_types(
    stamp: dict[str, Any], jobs: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "slurm").mkdir(exist_ok=True)
    (tmp_path / "a.json").write_text(json.dumps(stamp))
    (tmp_path / "slurm" / "jobs.json").write_text(json.dumps(jobs))
    Stamps(tmp_path).state(STEP, "d")
    table(status_rows([STEP], {"a": "d"}, tmp_path, None))
    try:
        JobBook(tmp_path)
    except TinyNewsRecError as error:
        assert "jobs.json" in str(error)


METRIC_NAMES = ("auc", "mrr", "ndcg5", "ndcg10")


@pytest.fixture(scope="module")
def per_impression(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of single impressions' metrics, as an evaluation writes it."""
    tensors: dict[str, Any] = {name: np.array([0.5, 1.0]) for name in METRIC_NAMES}
    tensors |= {"row": np.array([0, 1]), "user": np.array([0, 1], np.int32)}
    return save(tensors, {"format": FORMAT, "clicks": "f"})


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_file_of_impressions_with_any_bytes_is_read_or_refused(
    data: st.DataObject, per_impression: bytes, tmp_path: Path
) -> None:
    changed = bytearray(per_impression)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(0, len(changed))) :]
    path = tmp_path / "impressions.safetensors"
    path.write_bytes(changed)
    with contextlib.suppress(DataError):
        read_per_impression(path)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "BOOL", "F16", "U64"])
def test_impressions_of_another_type_are_refused(kind: str, tmp_path: Path) -> None:
    size = {"BF16": 2, "F16": 2, "U64": 8}.get(kind, 1)
    header = {"row": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * size]}}
    text = json.dumps(header | {"__metadata__": {"format": FORMAT}}).encode()
    path = tmp_path / "impressions.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * size))
    with pytest.raises(DataError, match=str(path)):
        read_per_impression(path)


_LINES = st.lists(
    st.one_of(
        st.builds("{} {}".format, st.integers(), st.lists(st.integers(0, 3))),
        st.builds("{} [{}]".format, st.integers(), st.sampled_from(["1e999", "NaN", "9" * 5000])),
        st.builds("1\tU\t9\tN1\t{}".format, st.sampled_from(["N1-1 N2-0", "N1", "N1-2", ""])),
        st.text(max_size=20),
        st.just("1 " + "[" * 5000),
    ),
    max_size=4,
).map("\n".join)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prediction=_LINES, behaviors=_LINES)
def test_predictions_and_logs_of_any_text_are_scored_or_refused(
    prediction: str, behaviors: str, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "prediction.txt").write_text(prediction, errors="surrogatepass")
    (tmp_path / "behaviors.tsv").write_text(behaviors, errors="surrogatepass")
    code = main(["score", str(tmp_path / "prediction.txt"), str(tmp_path / "behaviors.tsv")])
    assert code in (0, 1) and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize("name", ["prediction.txt", "behaviors.tsv"])
def test_a_malformed_prediction_or_log_is_one_line(
    name: str, malformed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prediction.txt").write_text("1 [1,2]\n")
    (tmp_path / "behaviors.tsv").write_text("1\tU\t9\tN1\tN1-1 N2-0\n")
    put(tmp_path / name, malformed)
    with time_limit():
        code = main(["score", str(tmp_path / "prediction.txt"), str(tmp_path / "behaviors.tsv")])
    err = capsys.readouterr().err
    assert code == 1 or (name, malformed) == ("prediction.txt", "empty")
    assert err.count("\n") == 1


def test_the_order_of_ties_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("score", "evaluate"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert "the later candidate comes first" in " ".join(capsys.readouterr().out.split())
