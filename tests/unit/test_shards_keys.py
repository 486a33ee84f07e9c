"""Ids as keys: numbers, control characters, and Parquet's columns of any type."""

import json

import pytest
from helpers.corpora import articles, refusals, write_json_lines
from helpers.foreign_tars import json_bytes, write_tar

from shards.build import build_articles, build_impressions
from shards.errors import DataError
from shards.fields import RowError, whole_number
from shards.foreign import index_tars
from shards.mind import parse_behavior, parse_news

FLOATS = [float(n) for n in range(20)]
IDS = [str(n) for n in range(20)]
LARGE = [float(2**53 + 2 * n) for n in range(20)]


def write(path, ids, form):
    rows = [row | {"id": number} for row, number in zip(articles(len(ids)), ids, strict=True)]
    if form == "jsonl":
        return write_json_lines(path / "a.jsonl", rows)
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path / "a.parquet")
        return path / "a.parquet"
    mark = {"csv": ",", "tsv": "\t"}[form]
    lines = [mark.join(["id", "title"]), *(mark.join([str(r["id"]), r["title"]]) for r in rows)]
    (path / f"a.{form}").write_text("\n".join(lines) + "\n")
    return path / f"a.{form}"


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
def test_whole_numbers_are_written_as_such(tmp_path, form):
    made = build_articles([write(tmp_path, FLOATS, form)], tmp_path / "set").shard_set
    assert [article["id"] for article in made] == IDS
    # A log names them either way, and its own ids and users may be floats too.
    (tmp_path / "b.tsv").write_text(
        "1\tU1\t11/11/2019 9:05:58 AM\t3 4\t5-1 6-0\n"
        "2.0\t7.0\t11/11/2019 9:05:58 AM\t3.0 4.0\t5.0-1 6.0-0\n"
    )
    log = build_impressions([tmp_path / "b.tsv"], made, tmp_path / "log").shard_set
    first, second = log
    assert (first["history"], first["candidates"]) == ([3, 4], [5, 6])
    assert second == first | {"id": "2", "user": "7"}


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
def test_beyond_what_a_double_holds_the_type_is_named(tmp_path, form):
    with pytest.raises(DataError, match=r"id beyond 2\*\*53 of type double 20;.*64-bit integers"):
        build_articles([write(tmp_path, LARGE, form)], tmp_path / "set")


@pytest.mark.parametrize(
    ("kind", "limit", "bits"), [("float32", 2**24, 24), ("float16", 2**11, 11)]
)
def test_parquet_of_smaller_floats(tmp_path, kind, limit, bits):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
    import numpy as np
    from pyarrow import parquet

    ids = pyarrow.array(np.array([1, limit - 1, limit], kind))
    titles = pyarrow.array(["a", "b", "c"])
    parquet.write_table(pyarrow.table({"id": ids, "title": titles}), tmp_path / "a.parquet")
    made = build_articles([tmp_path / "a.parquet"], tmp_path / "set", max_refused=1).shard_set
    assert [article["id"] for article in made] == ["1", str(limit - 1)]
    (reason,) = made.manifest.refused
    assert reason.startswith(f"id beyond 2**{bits} of type ")


@pytest.mark.parametrize(
    ("text", "whole"),
    [("17.0", "17"), ("-3.00", "-3"), ("3.5", "3.5"), ("1.2.0", "1.2.0"), ("v1.0", "v1.0"),
     ("12e45", "12e45"), ("٣.0", "٣.0"), ("9007199254740991.0", "9007199254740991"), ("", "")],
)  # fmt: skip
def test_which_texts_are_whole_numbers(text, whole):
    assert whole_number(text) == whole


@pytest.mark.parametrize("text", ["9007199254740992.0", "1e+16", "9.00720E+15"])
def test_texts_that_pandas_and_spreadsheets_have_rounded(text):
    with pytest.raises(RowError, match="id beyond"):
        whole_number(text)


def test_floats_in_tars_and_in_mind(tmp_path):
    rows = [row | {"id": number} for row, number in zip(articles(3), [7.0, 1e17, 8], strict=True)]
    write_tar(tmp_path / "a.tar", [(f"{n}.json", json_bytes(row)) for n, row in enumerate(rows)])
    made = index_tars([tmp_path], max_refused=0.5)
    assert [article["id"] for article in made] == ["7", "8"]
    assert made.manifest.refused == {"id beyond 2**53 of type double": 1}
    assert parse_news(["5.0", "c", "s", "t", "", "", "", ""])["id"] == "5"


ODD = {"NUL byte": "N3\0x", "control character in id": "N\x1b[31m3", "id too long": "N" * 1025}


@pytest.mark.parametrize("reason", ODD)
def test_control_characters_in_ids_are_refused(tmp_path, reason):
    rows = articles(20)
    rows[3]["id"] = ODD[reason]
    kept = rows[:3] + rows[4:]
    made = build_articles([write_json_lines(tmp_path / "a.jsonl", rows)], tmp_path / "set")
    assert list(made.shard_set) == kept
    assert [(line, why) for _, line, why in refusals(tmp_path / "set")] == [(4, reason)]
    write_tar(
        tmp_path / "t" / "a.tar", [(f"{n}.json", json_bytes(row)) for n, row in enumerate(rows)]
    )
    indexed = index_tars([tmp_path / "t"])
    assert list(indexed) == kept
    assert indexed.manifest.refused == {reason: 1}
    with pytest.raises(RowError, match=reason):
        parse_news([ODD[reason], "c", "s", "t", "", "", "", ""])
    for place, what in enumerate(["id", "user"]):
        line = ["1", "U1", "", "", "N1-1"]
        line[place] = ODD[reason]
        with pytest.raises(RowError, match=reason.replace("id", what) if place else reason):
            parse_behavior(line, {"N1": 0}, labelled=True)


@pytest.mark.parametrize("key", ["a\x1bb", "a\nb", "k" * 1025])
def test_control_characters_in_keys_of_tars_are_refused(tmp_path, key):
    rows = articles(6)
    members = [(f"{n}.json", json_bytes(row)) for n, row in enumerate(rows)]
    write_tar(tmp_path / "a.tar", [*members, (f"{key}.json", json_bytes(rows[0]))])
    made = index_tars([tmp_path])
    assert list(made) == rows
    (reason,) = made.manifest.refused
    assert reason in ("control character in key", "key too long")


def test_an_id_in_a_file_of_bodies_is_the_same_key(tmp_path):
    rows = [{"id": str(n), "title": f"t{n}"} for n in range(3)]
    bodies = [{"id": float(n), "body": f"b{n}"} for n in range(3)]
    source = write_json_lines(tmp_path / "a.jsonl", rows)
    second = write_json_lines(tmp_path / "b.jsonl", bodies)
    made = build_articles([source], tmp_path / "set", bodies=second).shard_set
    assert [article["body"] for article in made] == ["b0", "b1", "b2"]


def parquet_file(path, columns):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
    from pyarrow import parquet

    rows = articles(20)
    base = {name: [row[name] for row in rows] for name in ("id", "title", "body")}
    parquet.write_table(pyarrow.table(base | columns(pyarrow)), path)
    return path


def latin(pyarrow):
    texts = [b"caf\xe9" if n == 7 else b"cafe %d" % n for n in range(20)]
    buffers = pyarrow.array(texts, pyarrow.binary()).buffers()
    return pyarrow.Array.from_buffers(pyarrow.string(), 20, buffers)


def odd_columns(pyarrow):
    moment = 1573808122000000000
    return {
        "ns": pyarrow.array([moment + n for n in range(20)], pyarrow.timestamp("ns")),
        "far": pyarrow.array([2**58] * 20, pyarrow.timestamp("us")),
        "delay": pyarrow.array([moment + 1] * 20, pyarrow.duration("ns")),
        "latin": latin(pyarrow),
        "zone": pyarrow.array([moment] * 20, pyarrow.timestamp("ns", "No/Where")),
        "deep": pyarrow.array(
            [{"far": 2**58}] * 20, pyarrow.struct([("far", pyarrow.timestamp("us"))])
        ),
    }


def test_columns_that_no_field_names_are_not_read(tmp_path):
    path = parquet_file(tmp_path / "a.parquet", odd_columns)
    expected = [{k: row[k] for k in ("id", "title", "body")} for row in articles(20)]
    assert list(build_articles([path], tmp_path / "set").shard_set) == expected


@pytest.mark.parametrize("name", ["far", "delay", "zone", "deep"])
def test_values_that_python_cannot_hold_refuse_their_rows(tmp_path, name):
    from shards.fields import ArticleFields

    path = parquet_file(tmp_path / "a.parquet", odd_columns)
    fields = ArticleFields(time="deep.far" if name == "deep" else name)
    match = r"20 of 20 rows were refused.*(unreadable \w+|time is not text) 20"
    with pytest.raises(DataError, match=match):
        build_articles([path], tmp_path / "set", fields=fields)


def test_only_the_rows_that_have_them(tmp_path):
    from shards.fields import ArticleFields

    path = parquet_file(tmp_path / "a.parquet", odd_columns)
    made = build_articles([path], tmp_path / "set", fields=ArticleFields(title="latin")).shard_set
    assert made.num_rows == 19
    assert refusals(tmp_path / "set") == [("a.parquet", 8, "bad UTF-8")]
    # Whole microseconds are kept, with pandas or without; a rest of nanoseconds is no time.
    timed = build_articles(
        [path], tmp_path / "timed", fields=ArticleFields(time="ns"), max_refused=1
    ).shard_set
    assert [article["time"] for article in timed] == ["2019-11-15T08:55:22"]
    entry = json.loads((tmp_path / "timed" / "refused.jsonl").read_text().splitlines()[0])
    assert (entry["line"], entry["reason"]) == (2, "unreadable ns")
    assert entry["excerpt"].startswith("column ns of type timestamp[ns]: ")


def test_nested_parquet_is_read_by_leaves_and_names_them(tmp_path):
    from shards.fields import ArticleFields

    def nested(pyarrow):
        parts = [
            [{"name": "p1", "value": f"one {n}"}, {"name": "x", "value": "no"}] for n in range(20)
        ]
        return {
            "head": pyarrow.array([{"main": f"Title {n}", "sub": {"far": "s"}} for n in range(20)]),
            "parts": pyarrow.array(parts),
            "price": pyarrow.array([17] * 20, pyarrow.decimal128(20, 2)),
        }

    path = parquet_file(tmp_path / "a.parquet", nested)
    fields = ArticleFields(title="head.main", body="parts[name=p*].value", category="price")
    made = build_articles([path], tmp_path / "set", fields=fields).shard_set
    assert made.sample(3) == {"id": "N3", "title": "Title 3", "body": "one 3", "category": "17"}
    leaves = "id, title, body, head.main, head.sub.far, parts.name, parts.value, price"
    with pytest.raises(DataError, match=f"its columns are {leaves}; name the fields"):
        build_articles([path], tmp_path / "other", fields=ArticleFields(title="headline"))
    with pytest.raises(DataError, match=rf"no row has the field 'head\.man'.*has {leaves}"):
        build_articles([path], tmp_path / "other", fields=ArticleFields(title="head.man"))


def test_json_lines_with_other_names_are_refused_once(tmp_path):
    rows = [{"uuid": n, "head": {"main": f"t{n}"}, "text": "b"} for n in range(3)]
    for count in (1, 500):
        path = write_json_lines(tmp_path / "a.jsonl", rows * count)
        with pytest.raises(DataError) as error:
            build_articles([path], tmp_path / "set", max_refused=1)
        assert str(error.value) == (
            "a.jsonl: no row has the field 'id'; the first row has uuid, head.main, text; name the"
            " fields with --id-field, --title-field, --body-field …"
        )
        assert not (tmp_path / "set").exists()
    # One input of two, and a file of bodies.
    good = write_json_lines(tmp_path / "good.jsonl", articles(50))
    with pytest.raises(DataError, match=r"a\.jsonl: no row has the field 'id'"):
        build_articles([good, path], tmp_path / "set", max_refused=1)
    with pytest.raises(DataError, match=r"a\.jsonl: no row has the field 'body'"):
        rows = [{"id": n, "text": "b"} for n in range(3)]
        second = write_json_lines(tmp_path / "a.jsonl", rows)
        build_articles([good], tmp_path / "set", bodies=second)
