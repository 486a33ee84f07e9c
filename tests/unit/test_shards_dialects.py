"""Tables and logs of other dialects: named for what they are, with what to do about it."""

import csv
import gzip
import io
import json
import re
import shlex
import subprocess
import zipfile

import pytest
from helpers.corpora import articles, write_json_lines

from shards.build import build_articles, build_impressions
from shards.errors import DataError
from shards.fields import ArticleFields
from trainer.cli.main import main

NAMES = ("id", "title", "body")
ROWS = [{name: row[name] for name in NAMES} for row in articles(20)]


def table(**dialect):
    text = io.StringIO(newline="")
    writer = csv.writer(text, **dialect)
    writer.writerow(NAMES)
    writer.writerows([row[name] for name in NAMES] for row in ROWS)
    return text.getvalue()


def refusal(path, data, *, match, out="set"):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError, match=match) as raised:
        build_articles([path], path.parent / out)
    return str(raised.value)


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_another_separator_is_named_with_a_command_that_works(tmp_path, mark):
    match = r"a\.csv: its columns are separated by .*, expected commas; convert it: "
    said = refusal(tmp_path / "a.csv", table(delimiter=mark), match=match)
    command = said.split("convert it: ")[1].removesuffix(
        ", or --format tsv if no field is in quotes"
    )
    words = shlex.split(command)
    assert words[0] == "python3" and words[-4:] == ["<", "IN", ">", "OUT"]
    with (tmp_path / "a.csv").open("rb") as source, (tmp_path / "b.csv").open("wb") as target:
        subprocess.run(words[:-4], stdin=source, stdout=target, check=True, timeout=60)
    assert list(build_articles([tmp_path / "b.csv"], tmp_path / "set").shard_set) == ROWS


def test_commas_where_tabs_are_expected(tmp_path):
    match = r"a\.tsv: its columns are separated by ',', expected tabs; give --format csv"
    refusal(tmp_path / "a.tsv", table(), match=match)
    build_articles([tmp_path / "a.tsv"], tmp_path / "set", input_format="csv")


@pytest.mark.parametrize("mark", [";", ","])
def test_first_line_of_excel(tmp_path, mark):
    match = rf"its first line is 'sep={';' if mark == ';' else ''}', .*remove that line: sed 1d"
    refusal(tmp_path / "a.csv", f"sep={mark}\r\n" + table(delimiter=mark), match=match)


@pytest.mark.parametrize(
    ("data", "what", "rows"),
    [
        (json.dumps(ROWS), "a JSON array", ".[]"),
        ("\ufeff" + json.dumps(ROWS * 99), "a JSON array", ".[]"),
        (json.dumps(ROWS * 99, indent=1), "a JSON array", ".[]"),
        (json.dumps({"ok": 1, "articles": ROWS}), "one JSON object", ".articles[]"),
        (json.dumps({"articles": ROWS}, indent=2), "one JSON object", ".articles[]"),
        ("\n".join(json.dumps(r, indent=1) for r in ROWS), "JSON objects over several lines", "."),
    ],
)
def test_json_that_is_not_one_object_a_line(tmp_path, data, what, rows):
    match = rf" is {what}.*; expected one object per line; convert it: jq -c '{re.escape(rows)}' <"
    refusal(tmp_path / "a.json", data, match=rf"a\.json{match}")
    with gzip.open(tmp_path / "b.json.gz", "wt") as file:
        file.write(data)
    fields = ArticleFields(body="content")
    with pytest.raises(DataError, match=rf"b\.json\.gz{match}"):
        build_articles([tmp_path / "b.json.gz"], tmp_path / "set", fields=fields)


@pytest.mark.parametrize("line", ['[1, "text"]', '{"authors": [{"name": "A"}]}', "{'id': 1}"])
def test_lines_of_other_json_are_not_taken_for_one_value(tmp_path, line):
    refusal(tmp_path / "a.json", f"{line}\n" * 20, match=r"20 of 20 rows were refused|no row has")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "news.tsv"])
def test_line_ends_of_old_macs(tmp_path, name):
    text = table() if name == "a.csv" else table(delimiter="\t")
    text = "".join(json.dumps(row) + "\n" for row in ROWS) if name == "a.jsonl" else text
    match = r"its lines end in a carriage return alone, expected a newline; .* tr '\\r' '\\n'"
    refusal(tmp_path / name, text.replace("\r\n", "\n").replace("\n", "\r"), match=match)


def test_a_carriage_return_within_a_field_is_text(tmp_path):
    text = table(lineterminator="\n", quoting=csv.QUOTE_ALL).replace(" ", "\r", 3)
    (tmp_path / "a.csv").write_text(text, newline="")
    assert build_articles([tmp_path / "a.csv"], tmp_path / "set").shard_set.num_rows == len(ROWS)


def test_the_encoding_advised_keeps_the_quotes_of_windows(tmp_path):
    rows = [row | {"title": f"“{row['title']}” … 5 €"} for row in ROWS]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("cp1252")
    said = refusal(tmp_path / "a.jsonl", data, match="bad UTF-8 20.*iconv -f WINDOWS-1252")
    code = said.split("iconv -f ")[1].split()[0]
    (tmp_path / "b.jsonl").write_bytes(data.decode(code).encode())
    assert list(build_articles([tmp_path / "b.jsonl"], tmp_path / "b").shard_set) == rows


def test_workbooks_zips_and_folders_of_others(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
    for name in ("a.xlsx", "b.csv"):
        refusal(tmp_path / name, data.getvalue(), match="of Excel.*save it there as CSV UTF-8")
    with pytest.raises(DataError, match="of Excel"):
        build_articles([tmp_path / "b.csv"], tmp_path / "set", input_format="csv")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("a.csv", table())
    with pytest.raises(DataError, match=r"members are: a\.csv; only MIND's zips are read: unpack"):
        build_articles([tmp_path / "c.zip"], tmp_path / "set")
    with pytest.raises(DataError, match=r"expected a folder of MIND; for other data give the"):
        build_articles([tmp_path], tmp_path / "set")


@pytest.fixture(scope="module")
def article_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialects")
    path = write_json_lines(folder / "a.jsonl", ROWS)
    return build_articles([path], folder / "articles").shard_set


def write_log(path, history, shown="N2-0 N3-1", time="11/15/2019 8:55:22 PM"):
    path.write_text("".join(f"{n}\tU{n}\t{time}\t{history}\t{shown}\n" for n in range(20)))
    return path


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ("N1,N4", "bad history"),
        ("['N1', 'N4']", "bad history"),
        ("['N1']", "bad history"),
        ("N1|N4", "bad history"),
        ('"N1 N4"', "quoted columns"),
        ("", None),
        ("nan", None),
        ("[]", None),
        ("X1 X2", None),
    ],
)
def test_a_history_is_not_lost_to_its_separators(tmp_path, article_set, history, reason):
    log = write_log(tmp_path / "behaviors.tsv", history)
    made = (
        build_impressions([log], article_set, tmp_path / "set", max_refused=1)
        if not reason
        else None
    )
    if made is not None:
        assert all(impression["history"] == [] for impression in made.shard_set)
        return
    with pytest.raises(DataError, match=f"{reason} 20.*(ids separated by spaces|QUOTE_NONE)"):
        build_impressions([log], article_set, tmp_path / "set")


def test_what_a_log_may_hold_is_said(tmp_path, article_set, capsys):
    log = write_log(tmp_path / "behaviors.tsv", "X1", time="1573808122")
    words = ["--clicks", log, "--article-set", article_set.path, "--out", tmp_path / "set"]
    assert main(["shards", "build", *map(str, words)]) == 0
    said = capsys.readouterr().out
    assert "times are read as 2019-11-15T08:55:22 (ISO 8601) or 11/15/2019 8:55:22 AM" in said
    assert "no history names an article of the set" in said
    log = write_log(tmp_path / "behaviors.tsv", "N1", shown="N2-0.0 N3-1.0")
    with pytest.raises(DataError, match=r"bad click label 20.*each followed by -1 .* N1-0 N2-1"):
        build_impressions([log], article_set, tmp_path / "bad")
