"""TSV that was written with quoting: noted, where the quotes stay in the texts."""

import csv
import io
import json

import pytest
from helpers.corpora import articles, news_line, write_json_lines

from shards.build import build_articles, build_impressions
from shards.errors import DataError


def written(rows, quoting=csv.QUOTE_MINIMAL):
    """Rows as pandas' to_csv(sep="\\t") writes them."""
    text = io.StringIO()
    csv.writer(text, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(rows)
    return text.getvalue()


def notes(folder):
    path = folder / "noted.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def titles(share=1):
    return [f'He said "{n}" to them' if n % share == 0 else f"Title {n}" for n in range(40)]


@pytest.mark.parametrize("share", [1, 20])
def test_quoted_fields_are_noted(tmp_path, share):
    rows = [["id", "title"], *([f"N{n}", title] for n, title in enumerate(titles(share)))]
    (tmp_path / "a.tsv").write_text(written(rows))
    made = build_articles([tmp_path / "a.tsv"], tmp_path / "set").shard_set
    assert made.manifest.counts["rows_in_quotes"] == 40 // share
    (note,) = notes(tmp_path / "set")
    assert (note["source"], note["line"], note["what"]) == ("a.tsv", 0, "quoted fields")
    assert "quoting=csv.QUOTE_NONE" in note["excerpt"]


def test_also_in_mind_and_with_quotes_around_everything(tmp_path):
    news = [line.split("\t") for line in map(news_line, range(40))]
    for name, quoting in {"minimal": csv.QUOTE_MINIMAL, "all": csv.QUOTE_ALL}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "news.tsv").write_text(written(news, quoting))
        build_articles([folder], folder / "set")
        assert [note["what"] for note in notes(folder / "set")] == ["quoted fields"]


def test_quotes_of_a_text_are_not_noted(tmp_path):
    entities = '[{"Label": "A", "Type": "P"}]'
    lines = [news_line(n, f'"Quoted" {n}').replace("[]", entities) for n in range(39)]
    (tmp_path / "news.tsv").write_text("\n".join([*lines, news_line(40, '"all ""of"" it"')]) + "\n")
    made = build_articles([tmp_path / "news.tsv"], tmp_path / "set").shard_set
    assert "rows_in_quotes" not in made.manifest.counts and notes(tmp_path / "set") == []


def test_quotes_around_header_and_log_are_named(tmp_path):
    rows = [["id", "title"], ["N1", "T1"]]
    (tmp_path / "a.tsv").write_text(written(rows, csv.QUOTE_ALL))
    with pytest.raises(DataError, match=r"no column 'id'.*TSV is read without quoting"):
        build_articles([tmp_path / "a.tsv"], tmp_path / "set")
    source = write_json_lines(tmp_path / "a.jsonl", articles(5))
    made = build_articles([source], tmp_path / "articles").shard_set
    for impressions in ("N2-1 N3-0", "N2 N3"):
        log = [[str(n), "U1", "", "N1", impressions] for n in range(9)]
        (tmp_path / "b.tsv").write_text(written(log, csv.QUOTE_ALL))
        with pytest.raises(DataError, match=r"quoted columns 9;.*TSV is read without quoting"):
            build_impressions([tmp_path / "b.tsv"], made, tmp_path / "log")
