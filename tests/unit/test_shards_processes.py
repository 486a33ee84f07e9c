"""A build is the same, byte by byte, for any number of processes and any size of chunks."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from helpers.corpora import articles, refusals, write_json_lines, write_mind_folder, zip_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.build import build_articles
from shards.chunks import cut
from shards.errors import DataError
from shards.sources import InputFile


def contents(folder: Path) -> dict[str, bytes]:
    assert all(path.is_file() for path in folder.iterdir()), list(folder.iterdir())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def odd_rows() -> tuple[list, list[tuple[int, str]]]:
    """Rows of row D4 of the fault table among good ones, and the refusals that they must give."""
    good = articles(120)
    odd = [
        (good[3], "duplicate id"),
        ({"id": "a.b/c.json", "title": "Dots. In the id", "body": "x"}, None),
        ({"id": "ключ-é", "title": "Ünïcode “title”", "body": "日本語 \U0001f600"}, None),
        ({"id": "empty", "title": "No body", "body": ""}, None),
        ({"id": "huge", "title": "Huge", "body": "Wort für Wort. " * 20_000}, None),
        (b'{"id": "u", "title": "caf\xe9"}', "bad UTF-8"),
        (b'{"id": "j", "title": ', "bad JSON"),
        (b"\x00\x01\x02", "bad JSON"),
        (b"", None),
        (b"   ", None),
        (["no", "object"], "not a JSON object"),
        ({"title": "no id"}, "missing id"),
        ({"id": "t", "body": "no title"}, "missing title"),
        ({"id": "inv", "title": "\u200b \ufeff"}, "missing title"),
        (b'{"id": "s", "title": "\\ud800"}', "unpaired surrogate"),
        (good[40], "duplicate id"),
        ({"id": "copy", "title": good[7]["title"], "body": good[7]["body"]}, None),
        (json.dumps({"id": "crlf", "title": "a", "body": "b\r\nc"}).encode() + b"\r", None),
        ({"id": "loose", "title": "a\u00a0 b", "body": " e\u0301 \n\n\n\n x\x07"}, None),
    ]
    rows: list = list(good)
    refused = []
    for number, (row, reason) in enumerate(odd):
        place = 45 + 4 * number
        rows.insert(place, row)
        if reason is not None:
            refused.append((place + 1, reason))
    return rows, refused


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("shards.chunks.CHUNK_BYTES", 700)
    monkeypatch.setattr("shards.chunks._CHUNK_ROWS", 7)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_odd_rows_are_refused_alike_by_one_process_and_by_several(tmp_path, monkeypatch, name):
    rows, expected = odd_rows()
    path = write_json_lines(tmp_path / name, rows)
    options = {"samples_per_shard": 16, "max_refused": 0.5, "near_duplicates": True}
    whole = build_articles([path], tmp_path / "whole", **options).shard_set
    assert refusals(whole.path) == [(name, line, reason) for line, reason in expected]
    assert (whole.num_rows, whole.num_shards) == (126, 8)
    manifest = whole.manifest
    assert manifest.counts == {
        "written": 126,
        "duplicate_content": 1,
        "body_empty": 1,
        "normalised": 2,
        "normalised_controls": 1,
        "normalised_nfc": 1,
        "normalised_space": 2,
        "rows": 137,
        "refused": 10,
        "near_duplicates": manifest.counts["near_duplicates"],
    }
    by_id = {sample["id"]: sample for sample in whole}
    assert by_id["loose"]["title"] == "a b"
    assert by_id["loose"]["body"] == "é\n\nx"
    assert by_id["crlf"]["body"] == "b\nc"
    assert len(by_id["huge"]["body"]) == 20_000 * 15 - 1
    assert "a.b/c.json" in by_id
    assert "ключ-é" in by_id

    monkeypatch.setattr("shards.chunks.CHUNK_BYTES", 700)
    for processes in (1, 2, 3):
        out = tmp_path / f"set{processes}"
        build_articles([path], out, processes=processes, **options)
        assert contents(out) == contents(whole.path)


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    """Rows as CSV with quoted line ends, as TSV, or as Parquet, by the name."""
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".tsv":
            lines = [list(rows[0]), *(list(row.values()) for row in rows)]
            file.write("".join("\t".join(line).replace("\n", " ") + "\n" for line in lines))
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "tsv.gz", "parquet", "mind", "zip"])
def test_every_format_gives_the_same_set_and_line_numbers(tmp_path, small_chunks, form):
    rows = articles(100)
    for row in rows[::7]:
        row["body"] = 'Line one,\n“line” "two".'
    rows[60] = rows[60] | {"id": "N5"}
    if form in ("mind", "zip"):
        lines = [f"{r['id']}\tnews\tx\t{r['title']}\t\turl\t[]\t[]" for r in rows]
        path = write_mind_folder(tmp_path / "mind", lines)
        path = zip_folder(path, tmp_path / "mind.zip") if form == "zip" else path
    else:
        path = write_table(tmp_path / f"a.{form.removesuffix('.gz')}", rows)
        if form == "tsv.gz":
            path = tmp_path / "a.tsv.gz"
            path.write_bytes(gzip.compress((tmp_path / "a.tsv").read_bytes()))
    one = build_articles([path], tmp_path / "one", samples_per_shard=30).shard_set
    two = build_articles([path], tmp_path / "two", samples_per_shard=30, processes=2).shard_set
    assert contents(one.path) == contents(two.path)
    assert one.num_rows == 99
    assert [sample["title"] for sample in one] == [r["title"] for r in rows if r != rows[60]]
    # Of a CSV the lines count, and a body may have two.
    line = {"parquet": 61, "mind": 61, "zip": 61, "csv": 62 + 9}.get(form, 62)
    assert [(line, reason) for _, line, reason in refusals(one.path)] == [(line, "duplicate id")]


def test_bodies_of_a_second_file_by_several_processes(tmp_path, small_chunks):
    rows = [{"id": row["id"], "title": row["title"]} for row in articles(60)]
    bodies = [
        {"id": row["id"], "body": f"{row['body']}  More\u200b."}
        for row in reversed(articles(80, 10))
    ]
    bodies += [bodies[5], b"{", {"id": "N12", "body": "late"}]
    first = write_json_lines(tmp_path / "a.jsonl", rows)
    second = write_json_lines(tmp_path / "b.jsonl", bodies)
    options = {"bodies": second, "samples_per_shard": 16}
    one = build_articles([first], tmp_path / "one", **options).shard_set
    two = build_articles([first], tmp_path / "two", processes=2, **options).shard_set
    assert contents(one.path) == contents(two.path)
    expected = [f"{row['body']} More." for row in articles(60)]
    assert [sample["body"] for sample in one] == [""] * 10 + expected[10:]
    counts = one.manifest.counts
    assert (counts["body_from_second_file"], counts["bodies_unused"]) == (50, 30)
    assert [(line, reason) for _, line, reason in refusals(one.path)] == [
        (81, "duplicate id"),
        (82, "bad JSON"),
        (83, "duplicate id"),
    ]


def test_one_article_and_none(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", articles(1))
    built = build_articles([path], tmp_path / "one", processes=3).shard_set
    assert list(built) == articles(1)
    for text in ("", "\n", "[]\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"the inputs are empty|all refused"):
            build_articles([path], tmp_path / "none", processes=3, max_refused=1.0)
        assert not (tmp_path / "none" / "manifest.json").exists()


def test_texts_may_be_left_as_they_are(tmp_path):
    row = {"id": "1", "title": "e\u0301\u200b", "body": "a\u00a0 b\r\n\u0007c"}
    path = write_json_lines(tmp_path / "a.jsonl", [row])
    left = build_articles([path], tmp_path / "left", normalise=False).shard_set
    assert list(left) == [row]
    assert not any(name.startswith("normalised") for name in left.manifest.counts)
    made = build_articles([path], tmp_path / "made").shard_set
    assert list(made) == [{"id": "1", "title": "é", "body": "a b\nc"}]
    with pytest.raises(DataError, match="other options"):
        build_articles([path], tmp_path / "made", normalise=False)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.sampled_from([b"", b"a", b"\r", b"{}", b"x" * 30, b"\xef\xbb\xbfb"])),
    st.sampled_from([b"", b"\n"]),
    st.integers(1, 40),
)
def test_spans_have_every_line_once(tmp_path, monkeypatch, lines, end, chunk_bytes):
    monkeypatch.setattr("shards.chunks.CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr("shards.sources._BUFFER_BYTES", 16)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    expected = list(InputFile(path).lines())
    found, before = [], 0
    for chunk in cut(InputFile(path), "jsonl"):
        file = InputFile(path)
        found += [(before + number, line) for number, line in file.lines(*chunk.span)]
        before += file.num_lines
    assert found == expected
