"""Bad input of click logs and of MIND's news: counted and located, or one clear error."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import articles, news_line, refusals, write_json_lines, write_mind_folder

from shards.build import build_articles, build_impressions
from shards.clicks import ClickColumn
from shards.errors import DamageError, DataError
from shards.publish import FAILED_REPORT_NAME

TIME = "11/15/2019 8:55:22 PM"
NUM_ARTICLES = 10


def good(number: int, labelled: bool = True) -> str:
    shown = "N2-0 N3-1" if labelled else "N2 N3"
    return f"{number}\tU{number % 7}\t{TIME}\tN1 N4\t{shown}"


@pytest.fixture(scope="module")
def article_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad-clicks")
    path = write_json_lines(folder / "a.jsonl", articles(NUM_ARTICLES))
    return build_articles([path], folder / "articles").shard_set


def write_log(path: Path, lines: list[bytes | str], end: bytes = b"\n") -> Path:
    data = [line if isinstance(line, bytes) else line.encode() for line in lines]
    path.write_bytes(b"\n".join(data) + (end if data else b""))
    return path


def notes(folder: Path) -> list[tuple[int, str, str]]:
    path = folder / "noted.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(entry["line"], entry["what"], entry["excerpt"]) for entry in entries]


REFUSED: dict[str, tuple[bytes | str, str]] = {
    "a candidate that is unknown": (f"90\tU\t{TIME}\tN1\tN2-1 N77-0", "unknown article"),
    "a click on what is unknown": (f"90\tU\t{TIME}\tN1\tN2-0 N77-1", "unknown article"),
    "no click": (f"90\tU\t{TIME}\tN1\tN2-0 N3-0", "no click"),
    "no candidates": (f"90\tU\t{TIME}\tN1\t ", "no candidates"),
    "a label that is neither": (f"90\tU\t{TIME}\tN1\tN2-1 N3-2", "bad click label"),
    "a label of two digits": (f"90\tU\t{TIME}\tN1\tN2-1 N3-01", "bad click label"),
    "a label without news": (f"90\tU\t{TIME}\tN1\tN2-1 -0", "bad click label"),
    "labels missing from some": (f"90\tU\t{TIME}\tN1\tN2-1 N3", "bad click label"),
    "labels missing from all": (f"90\tU\t{TIME}\tN1\tN2 N3", "missing labels"),
    "candidates between commas": (f"90\tU\t{TIME}\tN1\tN2-1,N3-0", "bad candidates"),
    "candidates with commas": (f"90\tU\t{TIME}\tN1\tN2-1, N3-0", "bad candidates"),
    "a candidate in quotes": (f"90\tU\t{TIME}\tN1\tN2-1 'N3'-0", "bad candidates"),
    "a history half between commas": (f"90\tU\t{TIME}\tN1,N4 N5\tN2-1 N3-0", "bad history"),
    "a history with commas": (f"90\tU\t{TIME}\tN1, N4, N5\tN2-1 N3-0", "bad history"),
    "a history in quotes": (f'90\tU\t{TIME}\t"N1 N5 N4"\tN2-1 N3-0', "quoted columns"),
    "an impression id again": (good(7), "duplicate id"),
    "a tab too many": (f"90\tU\t{TIME}\tN1\t\tN2-1 N3-0", "wrong number of columns"),
    "a line of news.tsv": (news_line(3), "wrong number of columns"),
    "a line that was cut": (f"90\tU\t{TIME}", "wrong number of columns"),
    "zeros of a lost block": (b"\0" * 40, "wrong number of columns"),
    "a zero byte in an id": (b"9\x000\tU\t\tN1\tN2-1 N3-0", "NUL byte"),
    "a zero byte in a user": (b"90\tU\0\t\tN1\tN2-1 N3-0", "NUL byte"),
    "a zero byte in news": (b"90\tU\t\tN1\tN2-1 N3\0-0", "unknown article"),
    "another encoding": (b"90\tU\xe9\t\tN1\tN2-1 N3-0", "bad UTF-8"),
    "a header": ("impression_id\tuser_id\ttime\thistory\timpressions", "header line"),
}


@pytest.mark.parametrize("processes", [1, 2])
def test_each_bad_impression_is_refused_with_its_line(tmp_path, article_set, processes):
    lines: list[bytes | str] = [good(number) for number in range(60)]
    expected = []
    for place, (line, reason) in enumerate(REFUSED.values()):
        lines.insert(9 + 2 * place, line)
        expected.append(("behaviors.tsv", 10 + 2 * place, reason))
    log = write_log(tmp_path / "behaviors.tsv", lines)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("shards.chunks.CHUNK_BYTES", 600)
        options = {"max_refused": 0.5, "processes": processes}
        built = build_impressions([log], article_set, tmp_path / "set", **options).shard_set
    assert refusals(built.path) == expected
    assert sorted(sample["id"] for sample in built) == sorted(map(str, range(60)))
    counts = built.manifest.counts
    assert (counts["rows"], counts["refused"]) == (60 + len(expected), len(expected))
    assert sum(built.manifest.refused.values()) == len(expected)
    assert ClickColumn.open(built).num_clicks == 60


def test_what_is_odd_but_of_use_is_kept_counted_and_located(tmp_path, article_set):
    lines = [good(number) for number in range(9)]
    unknown = " ".join(f"X{n}" for n in range(10))
    lines[2] = f"2\tU\t{TIME}\tN5 {unknown} N6\tN2-0 N3-1"
    lines[3] = f"3\tU\t{TIME}\tX1\tN2-0 N3-1"
    lines[4] = f"4\tU\t{TIME}\t\tN2-1 N3-1"
    lines[5] = "5\tU\tnoon\tN1\tN2-0 N3-1"
    lines[6] = "6\tU\t2019-11-15 20:55:22\tN1\tN2-0 N3-1"
    lines[7] = f"7\tU\t{TIME}\tN1\tN3-1 N2-0 N2-0 N4-0 N3-0"
    lines.insert(9, lines[3])  # refused as duplicate id: not counted a second time
    log = write_log(tmp_path / "behaviors.tsv", lines, end=b"")
    built = build_impressions([log], article_set, tmp_path / "set").shard_set
    counts = built.manifest.counts
    odd = {
        "unknown_history",
        "empty_history",
        "without_negative",
        "unknown_time",
        "clicked_and_not",
    }
    assert {name: counts[name] for name in odd} == {
        "unknown_history": 11,
        "empty_history": 2,
        "without_negative": 1,
        "unknown_time": 1,
        "clicked_and_not": 1,
    }
    assert notes(built.path) == [
        (3, "unknown history", "X0 X1 X2 X3 X4 X5 X6 X7 and 2 more"),
        (4, "unknown history", "X1"),
        (5, "no negative", "N2-1 N3-1"),
        (6, "unknown time", "noon"),
        (8, "clicked and not", "N3-1 N3-0"),
        (0, "no line end", "the last line may be cut"),
    ]
    assert built.sample(2)["history"] == [5, 6]
    clicks = ClickColumn.open(built)
    # Both clicks of the impression without a negative are no units; evaluation still sees it.
    assert (clicks.num_impressions, clicks.num_clicks, clicks.num_left_out) == (9, 8, 2)
    assert clicks.time(np.array([5, 6])).tolist() == [-1, 1_573_851_322]


def test_nothing_odd_leaves_no_list(tmp_path, article_set):
    log = write_log(tmp_path / "behaviors.tsv", [good(number) for number in range(9)])
    built = build_impressions([log], article_set, tmp_path / "set").shard_set
    assert set(built.manifest.counts) == {"written", "rows", "refused"}
    assert not (built.path / "noted.jsonl").exists()


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_windows_line_ends_and_a_byte_order_mark(tmp_path, article_set, end):
    data = end.join(good(number).encode() for number in range(9)) + end
    log = tmp_path / "behaviors.tsv"
    log.write_bytes(b"\xef\xbb\xbf" + data + end + end)
    built = build_impressions([log], article_set, tmp_path / "set").shard_set
    assert built.manifest.counts == {"written": 9, "rows": 9, "refused": 0}
    assert built.sample(0)["id"] == "0"
    assert all(sample["candidates"] == [2, 3] for sample in built)


def test_labels_in_a_log_without(tmp_path, article_set):
    lines = [good(number, labelled=False) for number in range(9)]
    log = write_log(tmp_path / "behaviors.tsv", [*lines, good(9)])
    built = build_impressions([log], article_set, tmp_path / "set").shard_set
    assert not built.manifest.labelled
    assert refusals(built.path) == [("behaviors.tsv", 10, "unexpected labels")]


WHOLLY_WRONG = {
    "an empty file": ([], r"nothing to build from: 0 rows.*the inputs are empty$"),
    "blank lines": (["", ""], r"0 rows.*the inputs are empty$"),
    "only a header": (
        ["impression_id\tuser_id\ttime\thistory\timpressions"],
        r"1 of 1 rows were refused.*header line 1; each is listed in",
    ),
    "news.tsv": (
        [news_line(number) for number in range(20)],
        r"wrong number of columns 20; .*a file with 8 is news\.tsv, for --articles$",
    ),
    "another split": (
        [*map(good, range(3)), *[good(n).replace("N3-1", f"M{n}-1") for n in range(3, 20)]],
        r"unknown article 17; .*built from another part\? one set can hold all parts",
    ),
    "labelled and unlabelled lines": (
        [*map(good, range(9)), *[good(n, labelled=False) for n in range(9, 20)]],
        r"missing labels 11; .*MIND's test part, separately$",
    ),
    "candidates between commas": (
        [good(n).replace("N2-0 N3-1", "N2-0,N3-1") for n in range(20)],
        r"bad candidates 20; .*ids separated by spaces, without commas.*N1-0 N2-1$",
    ),
    "unlabelled candidates between commas": (
        [good(n, labelled=False).replace("N2 N3", "N2,N3") for n in range(20)],
        r"bad candidates 20; .*ids separated by spaces, without commas",
    ),
    "one day before the month": (
        [*map(good, range(9)), good(9).replace("11/15/", "15/11/"), *map(good, range(10, 20))],
        r"^behaviors\.tsv, line 10 has its day before the month \(9 U2 15/11/2019 8:55:22 PM .*\): "
        r"day before month 1; .*refused.*; expected 11/15/2019 8:55:22 AM \(MIND's",
    ),
    "a log written twice": (
        [*map(good, range(9)), *map(good, range(9))],
        r"duplicate id 9; .*was the file written twice over\?$",
    ),
}


@pytest.mark.parametrize("case", WHOLLY_WRONG)
def test_a_file_that_is_wrong_altogether_is_one_clear_error(tmp_path, article_set, case):
    lines, message = WHOLLY_WRONG[case]
    log = write_log(tmp_path / "behaviors.tsv", lines)
    out = tmp_path / "set"
    with pytest.raises(DataError, match=message) as error:
        build_impressions([log], article_set, out)
    assert "\n" not in str(error.value)
    left = [path.name for path in out.iterdir()] if out.exists() else []
    assert left in ([], [FAILED_REPORT_NAME])
    if left:
        report = (out / FAILED_REPORT_NAME).read_text().splitlines()
        assert str(out / FAILED_REPORT_NAME) in str(error.value) and report


def test_logs_with_and_without_labels_together(tmp_path, article_set):
    train = write_log(tmp_path / "train.tsv", [good(number) for number in range(9)])
    test = write_log(tmp_path / "test.tsv", [good(n, labelled=False) for n in range(9)])
    with pytest.raises(DataError, match=r"missing labels 9; .*build a log.*separately$"):
        build_impressions([train, test], article_set, tmp_path / "set")


def test_archives_without_the_file_say_what_they_hold(tmp_path, article_set):
    for names, found in ((["readme.txt", "x/news.tsv"], "readme.txt, x/news.tsv"), ([], "none")):
        path = tmp_path / f"{len(names)}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "x")
        message = rf"has 0 members named behaviors\.tsv, expected one; its members are: {found};"
        with pytest.raises(DataError, match=message):
            build_impressions([path], article_set, tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for folder in "ab":
            archive.writestr(f"{folder}/behaviors.tsv", good(1) + "\n")
    with pytest.raises(DataError, match="has 2 members named behaviors"):
        build_impressions([tmp_path / "two.zip"], article_set, tmp_path / "set")


def test_an_archive_cut_short_or_damaged(tmp_path, article_set):
    path = tmp_path / "log.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("behaviors.tsv", "".join(good(n) + "\n" for n in range(500)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cannot open the archive .*log\.zip"):
        build_impressions([path], article_set, tmp_path / "set")
    path.write_bytes(data[:400] + b"!" + data[401:])
    with pytest.raises(DamageError, match=r"log\.zip/behaviors\.tsv, after line .* cannot read on"):
        build_impressions([path], article_set, tmp_path / "set")
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_bad_news_is_refused_with_its_line(tmp_path):
    lines = [news_line(number) for number in range(30)]
    bad = {
        "header line": "id\tcategory\tsubcategory\ttitle\tabstract\turl\tentities\tentities",
        "wrong number of columns": news_line(40, title="a\ttab"),
        "missing title": news_line(41, title=" "),
        "missing id": news_line(42).replace("N42", "", 1),
        "duplicate id": news_line(3, title="another"),
    }
    for place, line in enumerate(bad.values()):
        lines.insert(5 * place, line)
    folder = write_mind_folder(tmp_path / "train", lines)
    built = build_articles([folder], tmp_path / "set").shard_set
    assert refusals(built.path) == [
        ("news.tsv", 5 * place + 1, reason) for place, reason in enumerate(bad)
    ]
    assert built.num_rows == 30


def test_a_log_given_as_news(tmp_path):
    path = tmp_path / "news.tsv"
    write_log(path, [good(number) for number in range(20)])
    with pytest.raises(DataError, match=r"columns 20; .*a file with 5 is behaviors\.tsv"):
        build_articles([path], tmp_path / "set")
