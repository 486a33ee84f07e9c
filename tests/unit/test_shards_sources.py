"""Reading rows out of files: formats, line numbers, and refusals that do not end the stream."""

import csv
import gzip
import io
import zipfile

import pytest
from helpers.corpora import articles, write_json_lines

from shards.chunks import cut
from shards.errors import DamageError, DataError, UsageError
from shards.fields import ArticleFields, FieldReader, RowError, parse_path
from shards.sources import InputFile, guess_format


def rows_of(path, form=None, columns=()):
    found, before = [], 0
    for chunk in cut(InputFile(path), form or guess_format(path), columns):
        file = InputFile(path)
        before = before if chunk.lines_before is None else chunk.lines_before
        found += [(before + row.line, row.reason or row.record) for row in chunk.rows(file)]
        before += file.num_lines
    return found


def test_bad_lines_of_json_are_refused_where_they_stand(tmp_path):
    path = write_json_lines(
        tmp_path / "a.jsonl",
        [
            b'\xef\xbb\xbf{"id": 1}',
            b'{"id": 2',
            b"",
            b'{"id": "\xff"}',
            b"[1, 2]",
            b"[" * 100_000,
            b'{"n": ' + b"9" * 5000 + b"}",
            b'{"id": 8}\r',
        ],
    )
    assert rows_of(path) == [
        (1, {"id": 1}),
        (2, "bad JSON"),
        (4, "bad UTF-8"),
        (5, "not a JSON object"),
        (6, "bad JSON"),
        (7, "bad JSON"),
        (8, {"id": 8}),
    ]


def test_a_row_too_long_is_refused_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.sources.MAX_ROW_BYTES", 100)
    fits = b'{"a": "' + b"x" * 91 + b'"}'
    assert len(fits) == 100
    path = write_json_lines(tmp_path / "a.jsonl", [fits, b"y" * 1000, b"y" * 101, b'{"b": 1}'])
    assert rows_of(path) == [
        (1, {"a": "x" * 91}),
        (2, "row too long"),
        (3, "row too long"),
        (4, {"b": 1}),
    ]


def test_csv_agrees_with_pythons_reader(tmp_path):
    text = 'id,title,body\n1,"a, ""b""","line\n\n line, 3"\r\n2,plain,\n3,é,"x"\n'
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    expected = list(csv.DictReader(io.StringIO(text.replace("\r\n", "\n"))))
    found = rows_of(path, columns=["id", "title"])
    assert [record for _, record in found] == expected
    assert [line for line, _ in found] == [2, 5, 6]


def test_broken_csv_rows_do_not_take_their_neighbours_along(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"id,title\n"
        b"1,one\n"
        b'2,"never closed\n'
        b'3,"three"\n'
        b"4,four,too many\n"
        b"5\n"
        b'6,"bad \xff"\n'
        b'7,"trailing"x\n'
        b'8,"eight"\n'
        b'9,"open until the end\n'
        b"10,ten\n"
    )
    assert rows_of(path) == [
        (2, {"id": "1", "title": "one"}),
        (3, "bad quoting"),
        (4, {"id": "3", "title": "three"}),
        (5, "wrong number of columns"),
        (6, "wrong number of columns"),
        (7, "bad UTF-8"),
        (8, "bad quoting"),
        (9, {"id": "8", "title": "eight"}),
        (10, "bad quoting"),
        (11, {"id": "10", "title": "ten"}),
    ]


def test_tsv_has_no_quoting(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('id\ttitle\n1\t"Quoted" words\n2\t"open\n3\tx\ty\n')
    assert rows_of(path) == [
        (2, {"id": "1", "title": '"Quoted" words'}),
        (3, {"id": "2", "title": '"open'}),
        (4, "wrong number of columns"),
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_column_that_is_not_there_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("id,headline\n" if name == "a.csv" else "id\theadline\n")
    with pytest.raises(DataError, match="no column 'title'; its columns are id, headline"):
        rows_of(path, columns=["id", "title"])
    path.write_text("")
    with pytest.raises(DataError, match="no header line"):
        rows_of(path)
    path.write_text("id,id\n" if name == "a.csv" else "id\tid\n")
    with pytest.raises(DataError, match="occurs twice"):
        rows_of(path)


def test_a_gzip_cut_short_is_damage_and_not_the_end(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl.gz", articles(500))
    assert len(rows_of(path)) == 500
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamageError, match=r"a\.jsonl\.gz, after line \d+: cannot read on"):
        rows_of(path)
    path.write_bytes(b"not a gzip")
    with pytest.raises(DamageError, match="after line 0"):
        rows_of(path)


def test_a_flipped_byte_in_a_zip_is_damage(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inside/rows.jsonl", '{"id": 1}\n' * 1000)
    file = InputFile(path, "inside/rows.jsonl")
    assert file.name == "a.zip/rows.jsonl"
    assert sum(1 for _ in file.lines()) == 1000
    assert file.position == file.size == 10_000
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamageError, match="cannot read on"):
        list(InputFile(path, "inside/rows.jsonl").lines())


def test_parquet_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
    from pyarrow import parquet

    rows = [
        {"id": n, "title": f"t{n}", "text": {"parts": ["a", "b"]}, "when": None} for n in range(5)
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert rows_of(path, columns=["id"]) == [(n + 1, row) for n, row in enumerate(rows)]
    with pytest.raises(DataError, match="no column 'body'"):
        rows_of(path, columns=["body"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamageError, match=r"a\.parquet"):
        rows_of(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'tiny-newsrec\[parquet\]'"):
        rows_of(path)


def test_formats_are_told_by_the_name(tmp_path):
    names = ["a.jsonl.gz", "a.json", "a.b.CSV", "a.tsv.gz", "a.parquet", "a.txt", "jsonl"]
    guesses = [guess_format(tmp_path / name) for name in names]
    assert guesses == ["jsonl", "jsonl", "csv", "tsv", "parquet", None, None]
    with pytest.raises(DataError, match="does not exist"):
        InputFile(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="is not a file"):
        InputFile(tmp_path)


RECORD = {
    "id": 17,
    "head": {"main": "  A \n title "},
    "document": [
        {"name": "headline", "value": "skip"},
        {"name": "body_par_000", "value": "First."},
        {"name": "body_par_001", "value": " Second. "},
        {"value": "no name"},
    ],
    "authors": [["Ann"], ["Bob"]],
    "a.b": "key with a dot",
    "when": None,
    "tags": ["x", "y"],
    "flag": True,
}


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("id", "id", "17"),
        ("title", "head.main", "A title"),
        ("body", "document[name=body_par_*].value", "First.\nSecond."),
        ("body", "document.value", "skip\nFirst.\nSecond.\nno name"),
        ("body", "document.1.value", "First."),
        ("body", "document.9.value", None),
        ("body", "document[name=none].value", None),
        ("category", "authors.1", "Bob"),
        ("category", "tags", "x"),
        ("title", "tags", "x y"),
        ("abstract", "a.b", "key with a dot"),
        ("time", "when", None),
        ("url", "head.other", None),
    ],
)
def test_paths_into_records(name, path, expected):
    reader = FieldReader(ArticleFields(**{name: path}), (name,))
    assert reader.read(RECORD).get(name) == expected


def test_values_that_are_not_text_are_refused():
    with pytest.raises(RowError, match="title is not text"):
        FieldReader(ArticleFields(title="flag")).read(RECORD)
    with pytest.raises(RowError, match="body is not text"):
        FieldReader(ArticleFields(body="document")).read(RECORD)
    with pytest.raises(RowError, match="id too long"):
        FieldReader(ArticleFields()).read({"id": "x" * 1025})


def test_a_misspelt_field_is_an_error_at_the_end_of_the_input():
    reader = FieldReader(ArticleFields(body="txt", title="head.main"))
    reader.read(RECORD)
    with pytest.raises(DataError, match=r"no row has the field 'txt' \(--body-field\).*id, head"):
        reader.check_all_seen("a.jsonl")


@pytest.mark.parametrize("path", ["", ".", "a..b", "a.", "a[b].c", "a[b=c", "[a=b]"])
def test_a_path_that_cannot_be_understood_is_a_usage_error(path):
    with pytest.raises(UsageError, match="is not a path"):
        parse_path("body", path)


def test_gzipped_csv_is_read_through(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b'id,title\n1,"x\ny"\n'))
    assert rows_of(path) == [(2, {"id": "1", "title": "x\ny"})]
