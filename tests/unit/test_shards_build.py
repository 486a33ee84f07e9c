"""Building article sets: refusals counted and located, bodies, merging, repeats, limits."""

import json

import pytest
from helpers.corpora import (
    articles,
    news_line,
    refusals,
    write_json_lines,
    write_mind_folder,
    zip_folder,
)

from shards.build import build_articles
from shards.errors import DamageError, DataError, UsageError
from shards.fields import ArticleFields


def test_a_tenth_of_the_rows_broken_in_ten_ways(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.sources.MAX_ROW_BYTES", 5000)
    good = articles(180)
    broken = {
        "missing title": [{"id": "B1", "body": "x"}, {"id": "B2", "title": " \n"}],
        "missing id": [{"title": "t"}, {"id": None, "title": "t"}],
        "duplicate id": [good[0], {"id": "N1", "title": "other"}],
        "bad JSON": [b'{"id": "B3", "title": ', b"\x00\x01"],
        "bad UTF-8": [b'{"id": "B4", "title": "caf\xe9"}', b"\xff\xfe"],
        "not a JSON object": [[1, 2], "text"],
        "title is not text": [{"id": "B5", "title": {"a": 1}}, {"id": "B6", "title": True}],
        "body is not text": [
            {"id": "B7", "title": "t", "body": {"html": "x"}},
            good[3] | {"body": False},
        ],
        "unpaired surrogate": [
            b'{"id": "B8", "title": "\\ud800"}',
            b'{"id": "\\udfff", "title": "t"}',
        ],
        "row too long": [{"id": "B9", "title": "x" * 6000}, b"x" * 5001],
    }
    rows: list = list(good)
    expected = []
    bad = [
        (reason, row)
        for pair in zip(*broken.values(), strict=True)
        for reason, row in zip(broken, pair, strict=True)
    ]
    for number, (reason, row) in enumerate(bad):
        # Behind all that a duplicate may repeat, and apart from each other.
        place = 10 + 9 * number
        rows.insert(place, row)
        expected.append(("news.jsonl", place + 1, reason))
    assert len(rows) == 200
    path = write_json_lines(tmp_path / "news.jsonl", rows)
    built = build_articles([path], tmp_path / "set", samples_per_shard=64).shard_set

    assert refusals(built.path) == expected
    assert built.manifest.refused == {reason: 2 for reason in sorted(broken)}
    assert built.manifest.counts["rows"] == 200
    assert built.manifest.counts["refused"] == 20
    assert list(built) == good
    report = (built.path / "refused.jsonl").read_text(encoding="utf-8")
    excerpts = [json.loads(line)["excerpt"] for line in report.splitlines()]
    assert all(len(excerpt) <= 160 for excerpt in excerpts)
    assert any("B5" in excerpt for excerpt in excerpts)


def test_too_many_refusals_fail_and_leave_no_set(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", [*articles(7), *[{"id": "x"}] * 3])
    with pytest.raises(
        DataError, match=r"3 of 10 rows were refused \(30\.0%.*missing title 3"
    ) as e:
        build_articles([path], tmp_path / "set")
    report = tmp_path / "set" / "refused-by-failed-build.jsonl"
    assert str(report) in str(e.value)
    assert len(report.read_text().splitlines()) == 3
    assert [file.name for file in (tmp_path / "set").iterdir()] == [report.name]
    built = build_articles([path], tmp_path / "set", max_refused=0.3)
    assert built.shard_set.num_rows == 7
    assert not report.exists()


def test_wrong_options_are_noticed_long_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.intake.HOPELESS_ROWS", 10)
    path = write_json_lines(tmp_path / "a.jsonl", ({"no": n, "headline": "h"} for n in range(500)))
    with pytest.raises(DataError, match="the first 10 rows were all refused: missing id 10"):
        build_articles([path], tmp_path / "set")


def test_nothing_to_build_from(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n")
    with pytest.raises(DataError, match="the inputs are empty"):
        build_articles([path], tmp_path / "set")
    path.write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="1 rows, all refused: missing title 1"):
        build_articles([path], tmp_path / "set", max_refused=1.0)
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_misspelt_field_fails_though_all_rows_are_fine(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", articles(5))
    with pytest.raises(DataError, match="no row has the field 'txt'"):
        build_articles([path], tmp_path / "set", fields=ArticleFields(body="txt"))
    assert not (tmp_path / "set").exists()


def test_the_body_is_the_body_else_the_abstract_else_empty(tmp_path):
    rows = [
        {"id": 1, "title": "t", "body": "B", "abstract": "A"},
        {"id": 2, "title": "t", "body": "", "abstract": "A"},
        {"id": 3, "title": "t", "abstract": None},
    ]
    path = write_json_lines(tmp_path / "a.jsonl", rows)
    built = build_articles([path], tmp_path / "set").shard_set
    assert [(sample["body"], sample.get("abstract")) for sample in built] == [
        ("B", "A"),
        ("A", "A"),
        ("", None),
    ]
    counts = built.manifest.counts
    assert (counts["body_from_abstract"], counts["body_empty"]) == (1, 1)
    assert built.manifest.fields == ("abstract", "body", "id", "title")


def test_a_missing_text_that_pandas_wrote_as_nan_is_none(tmp_path):
    row = {"id": 1, "title": "t", "body": float("nan"), "abstract": "A", "category": [float("nan")]}
    path = write_json_lines(tmp_path / "a.jsonl", [row])
    (article,) = build_articles([path], tmp_path / "set").shard_set
    assert article == {"id": "1", "title": "t", "body": "A", "abstract": "A"}


@pytest.mark.parametrize("pack", ["folder", "zip", "zip with folder", "file"])
def test_news_of_mind(tmp_path, pack):
    news = [
        news_line(1),
        news_line(2, title=""),
        news_line(3, abstract=""),
        "N4\tshort",
        news_line(5),
    ]
    given = write_mind_folder(tmp_path / "MINDsmall_train", news)
    if pack == "file":
        given = given / "news.tsv"
    elif pack != "folder":
        prefix = "MINDsmall_train/" if pack == "zip with folder" else ""
        given = zip_folder(given, tmp_path / "train.zip", prefix)
    built = build_articles([given], tmp_path / "set", max_refused=0.5).shard_set
    assert [sample["id"] for sample in built] == ["N1", "N3", "N5"]
    assert built.sample(0) == {
        "id": "N1",
        "title": 'He said "no" to 1',
        "body": "An abstract.",
        "category": "news",
        "subcategory": "world",
        "abstract": "An abstract.",
        "url": "https://example.org/1",
    }
    source = "train.zip/news.tsv" if pack.startswith("zip") else "news.tsv"
    assert refusals(built.path) == [
        (source, 2, "missing title"),
        (source, 4, "wrong number of columns"),
    ]


def test_parts_of_one_collection_are_merged(tmp_path):
    train = write_mind_folder(tmp_path / "train", [news_line(n) for n in (1, 2, 3)])
    dev = write_mind_folder(
        tmp_path / "dev", [news_line(2), news_line(4), news_line(3, title="Changed"), news_line(4)]
    )
    built = build_articles([train, dev], tmp_path / "set", max_refused=0.3).shard_set
    assert [sample["id"] for sample in built] == ["N1", "N2", "N3", "N4"]
    assert built.manifest.counts["repeated"] == 1
    assert [(line, reason) for _, line, reason in refusals(built.path)] == [
        (3, "duplicate id"),
        (4, "duplicate id"),
    ]


def test_bodies_from_a_second_file(tmp_path):
    news = write_mind_folder(tmp_path / "mind", [news_line(n) for n in range(4)])
    bodies = [{"key": f"N{n}", "text": [f"Body {n}", "end — é"]} for n in (3, 1, 9, 1)]
    path = write_json_lines(tmp_path / "bodies.jsonl.gz", [*bodies, b"{"])
    fields = ArticleFields(id="key", body="text")
    built = build_articles(
        [news], tmp_path / "set", bodies=path, fields=fields, max_refused=0.3
    ).shard_set
    texts = ["An abstract.", "Body 1\nend — é", "An abstract.", "Body 3\nend — é"]
    assert [sample["body"] for sample in built] == texts
    counts = built.manifest.counts
    assert (counts["body_from_second_file"], counts["bodies_unused"]) == (2, 1)
    assert refusals(built.path) == [
        ("bodies.jsonl.gz", 4, "duplicate id"),
        ("bodies.jsonl.gz", 5, "bad JSON"),
    ]


def test_building_again_does_nothing_unless_something_changed(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", articles(20))
    first = build_articles([path], tmp_path / "set")
    before = (tmp_path / "set" / "manifest.json").stat()
    again = build_articles([path], tmp_path / "set")
    assert (first.already_built, again.already_built) == (False, True)
    assert again.shard_set.fingerprint == first.shard_set.fingerprint
    assert (tmp_path / "set" / "manifest.json").stat().st_mtime_ns == before.st_mtime_ns
    assert build_articles([path], tmp_path / "set", input_format="jsonl").already_built
    built = "set already holds a shard set built "
    with pytest.raises(DataError, match=rf"{built}with other options \(samples_per_shard\); ch"):
        build_articles([path], tmp_path / "set", samples_per_shard=5)
    write_json_lines(path, articles(21))
    with pytest.raises(DataError, match=rf"{built}from other inputs; choose another folder"):
        build_articles([path], tmp_path / "set")
    with pytest.raises(DataError, match=rf"{built}from other inputs and with other options \(form"):
        build_articles([path], tmp_path / "set", input_format="csv")
    forced = build_articles([path], tmp_path / "set", force=True)
    assert forced.shard_set.num_rows == 21


def test_the_manifest_does_not_depend_on_where_the_inputs_lie(tmp_path):
    manifests = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        path = write_json_lines(tmp_path / place / "a.jsonl", articles(20))
        built = build_articles([path], tmp_path / place / "set").shard_set
        manifests.append((built.path / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]
    assert str(tmp_path).encode() not in manifests[0]


def test_an_input_that_breaks_off_fails_and_leaves_no_set(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl.gz", articles(2000))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DamageError, match="cannot read on"):
        build_articles([path], tmp_path / "set", samples_per_shard=100)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        ("a.txt", {}, DataError, "cannot tell the format"),
        ("missing", {}, DataError, "does not exist"),
        ("empty folder", {}, DataError, "has no news.tsv"),
        ("empty zip", {}, DataError, "0 members named news.tsv"),
        ("a.jsonl", {"input_format": "xml"}, UsageError, "'xml' is not one of jsonl"),
        ("a.jsonl", {"samples_per_shard": 0}, UsageError, "--samples-per-shard is 0"),
        ("a.jsonl", {"max_refused": 1.5}, UsageError, "--max-refused is 1.5"),
        ("a.jsonl", {"bodies": "missing.jsonl"}, DataError, "missing.jsonl does not exist"),
        ("none", {}, UsageError, "no input"),
    ],
)
def test_wrong_calls_are_explained(tmp_path, make, options, error, message):
    path = tmp_path / make
    if make.startswith("a."):
        write_json_lines(path, articles(2))
    elif make.startswith("empty"):
        path.mkdir()
        if make == "empty zip":
            path = zip_folder(path, tmp_path / "empty.zip")
    inputs = [] if make == "none" else [path]
    with pytest.raises(error, match=message):
        build_articles(inputs, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.data
def test_wikinews_in_two_layouts(tmp_path, real_data):
    folder = real_data / "news-wikinews"
    fields = ArticleFields(id="url", body="text", time="date")
    files = [folder / "wikinews_2019.csv", folder / "wikinews_2020.csv"]
    tables = build_articles(files, tmp_path / "csv", fields=fields).shard_set
    assert tables.manifest.refused == {}
    fields = ArticleFields(id="docId", body="document[name=body_par_*].value", time="timestamp")
    path = folder / "wikinews_saliency_2004_2014.json"
    nested = build_articles([path], tmp_path / "json", fields=fields).shard_set
    assert tables.num_rows + nested.num_rows == 660
    first = nested.sample(0)
    assert first["title"] == "Iran close to decision on nuclear program"
    assert first["body"].startswith("Iranian representatives say negotiations")
    assert first["body"].count("\n") == 4
    assert all(sample["body"] for sample in tables)


@pytest.mark.data
def test_the_doj_releases(tmp_path, real_data):
    fields = ArticleFields(time="date", category="components")
    built = build_articles(
        [real_data / "news-doj" / "doj.jsonl.gz"], tmp_path / "doj", fields=fields
    ).shard_set
    assert built.manifest.refused == {}
    # Some releases are in the collection twice, under two numbers.
    assert built.manifest.counts["rows"] == 12_694
    assert built.manifest.counts["duplicate_content"] == 16
    assert built.num_rows == 12_678
    assert built.sample(0)["category"] == "Tax Division"
