"""A layout that was guessed from the first samples is held against the whole set."""

import pytest
from helpers.corpora import articles
from helpers.foreign_tars import json_bytes, text_members, write_tar

from shards.errors import DataError
from shards.fields import ArticleFields
from shards.foreign import index_tars
from shards.reindex import rebuild_indexes
from shards.verify import verify_set

ROWS = [{"title": f"Title {n}", "body": f"Body {n}"} for n in range(100)]
GUESS = "was guessed from the first samples and does not fit the whole set: give --member"
DOTTED = {
    "dates": [f"2019.11.{1 + n % 28:02d}-{n:04d}.json" for n in range(100)],
    "hosts": [f"www.site{n % 5}.com-{n:04d}.json" for n in range(100)],
    "most end alike": [f"{n:04d}.v2.json" if n < 60 else f"{n:04d}.v{n}.json" for n in range(100)],
    "a second for each": [f"{n // 2:04d}.{('v2', 'meta')[n % 2]}.json" for n in range(100)],
}


@pytest.mark.parametrize("keys", DOTTED)
def test_dots_in_keys_are_refused_and_not_passed_over(tmp_path, keys):
    write_tar(tmp_path / "a.tar", zip(DOTTED[keys], map(json_bytes, ROWS), strict=True))
    with pytest.raises(DataError, match=f"of 100 samples were refused.*dot in key.*{GUESS}"):
        index_tars([tmp_path])
    made = index_tars([tmp_path], max_refused=1)
    counts = made.manifest.counts
    assert counts["written"] + made.manifest.refused["dot in key"] == counts["rows"] == 100
    assert len((tmp_path / "refused.jsonl").read_text().splitlines()) == counts["refused"]


def test_one_ending_for_all_is_a_layout(tmp_path):
    keys = (f"{n:04d}.v2.json" for n in range(100))
    write_tar(tmp_path / "a.tar", zip(keys, map(json_bytes, ROWS), strict=True))
    assert index_tars([tmp_path]).manifest.counts == {
        "id_from_key": 100,
        "rows": 100,
        "written": 100,
    }


SECOND = {
    "another suffix": ([(f"x{n}.article", json_bytes(ROWS[n])) for n in range(50)], "no member of"),
    "texts": ([m for n in range(50) for m in text_members(f"x{n}", "T", "B")], "no member of"),
    "other names": (
        [(f"x{n}.json", json_bytes({"headline": "T", "text": "B"})) for n in range(50)],
        "field left out",
    ),
    "another name of the body": (
        [(f"x{n}.json", json_bytes({"title": "T", "content": "B"})) for n in range(50)],
        "field left out",
    ),
    "ids": (
        [(f"x{n}.json", json_bytes(ROWS[n] | {"uuid": f"u{n}"})) for n in range(50)],
        "field left out",
    ),
    "a text beside": (
        [
            member
            for n in range(50)
            for member in [(f"x{n}.json", json_bytes(ROWS[n])), (f"x{n}.abstract.txt", b"A")]
        ],
        "field left out",
    ),
}


@pytest.mark.parametrize("kind", SECOND)
def test_a_second_tar_that_is_laid_out_otherwise(tmp_path, kind):
    members, reason = SECOND[kind]
    write_tar(tmp_path / "a.tar", [(f"{n}.json", json_bytes(ROWS[n])) for n in range(50)])
    write_tar(tmp_path / "b.tar", members)
    with pytest.raises(DataError, match=f"50 of 100 samples were refused.*{reason}.*: b.tar"):
        index_tars([tmp_path])
    made = index_tars([tmp_path], max_refused=0.5)
    assert made.num_rows == 50
    # The indexes that are made again leave out the same samples.
    (tmp_path / "b.idx").unlink()
    assert rebuild_indexes(tmp_path) == ["b.idx"]
    assert verify_set(tmp_path).ok


def test_bodies_of_another_suffix_in_a_later_tar(tmp_path):
    write_tar(tmp_path / "a.tar", [m for n in range(50) for m in text_members(f"a{n}", "T", "B")])
    later = [(f"b{n}.{name}", b"x") for n in range(50) for name in ("title.txt", "body.text")]
    write_tar(tmp_path / "b.tar", later)
    with pytest.raises(DataError, match=r"50 of 100 samples were refused.*field left out 50"):
        index_tars([tmp_path])


def test_what_is_given_is_not_questioned(tmp_path):
    write_tar(tmp_path / "a.tar", [(f"{n}.json", json_bytes(ROWS[n])) for n in range(50)])
    other = [(f"x{n}.json", json_bytes({"title": "T", "content": "B"})) for n in range(25)]
    write_tar(tmp_path / "b.tar", [*other, *((f"y{n}.article", b"") for n in range(25))])
    fields = ArticleFields(title="title", body="body", id="id")
    members = {"json": "json"}
    with pytest.raises(DataError, match=r"no row has the field 'id'"):
        index_tars([tmp_path], members=members, fields=fields)
    fields = ArticleFields(title="title", body="body")
    made = index_tars([tmp_path], members=members, fields=fields)
    assert made.num_rows == 75
    assert made.manifest.counts == {
        "body_empty": 25, "id_from_key": 75, "other_members": 25, "rows": 75, "written": 75
    }  # fmt: skip


def test_pictures_and_notes_beside_the_samples_are_no_samples(tmp_path):
    members = [("README", b"x"), ("__meta__/a.json", b"{}"), ("classes.txt", b"x")]
    for n, row in enumerate(articles(20)):
        members += [(f"{n}.jpg", b"x"), (f"{n}.json", json_bytes(row)), (f"{n}.cls", b"3")]
    write_tar(tmp_path / "a.tar", members)
    made = index_tars([tmp_path])
    assert made.num_rows == 20
    assert made.manifest.refused == {"no member of the layout": 1}
    assert made.manifest.counts["other_members"] == 43


def test_json_without_any_title_is_refused_once_with_its_fields(tmp_path):
    rows = [{"name": f"n{n}", "text": "b"} for n in range(20)]
    write_tar(tmp_path / "a.tar", [(f"{n}.json", json_bytes(row)) for n, row in enumerate(rows)])
    with pytest.raises(DataError, match="no title; its fields are name, text; name one wi"):
        index_tars([tmp_path])
    made = index_tars([tmp_path], fields=ArticleFields(title="name"))
    assert made.sample(3) == {"id": "3", "title": "n3", "body": "b"}
