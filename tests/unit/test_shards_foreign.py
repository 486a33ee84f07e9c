"""Shard sets of tars made elsewhere: what is read, what is refused, and that tars stay as they
are."""

import gzip
import json
import pickle
import tarfile

import pytest
from helpers.corpora import articles, refusals
from helpers.foreign_tars import json_bytes, json_tars, text_members, text_tars, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.build import build_impressions
from shards.errors import DamageError, DataError, UsageError
from shards.fields import ArticleFields
from shards.files import read_json, write_json_atomic
from shards.foreign import index_tars
from shards.manifest import MANIFEST_NAME, read_manifest
from shards.reader import ShardSet
from shards.reindex import rebuild_indexes
from shards.stats import compute_stats
from shards.verify import verify_set
from shards.writer import ShardWriter

ROWS = articles(11)


def test_one_json_member_a_sample(tmp_path):
    tars = json_tars(tmp_path / "tars", ROWS)
    before = [tar.read_bytes() for tar in tars]
    made = index_tars([tmp_path / "tars"])
    assert list(made) == ROWS
    assert [made.sample(row) for row in (10, 0, 5)] == [ROWS[row] for row in (10, 0, 5)]
    assert made.read([3, 3, 7]) == [ROWS[3], ROWS[3], ROWS[7]]
    assert json.loads(made.payload(4)) == ROWS[4]
    assert made.key(9) == "s9"
    assert (made.kind, made.num_rows, made.num_shards) == ("articles", 11, 3)
    assert made.manifest.fields == ("body", "category", "id", "title")
    assert made.manifest.counts == {"rows": 11, "written": 11}
    assert [tar.read_bytes() for tar in tars] == before
    assert not (made.path / "refused.jsonl").exists()
    # Our own object, as multiprocessing passes it on; nothing is read from a file.
    # Sets travel to worker processes; what is read is what was written in this line.
    assert pickle.loads(pickle.dumps(made)).sample(7) == ROWS[7]
    assert verify_set(made.path).ok


def test_title_and_body_as_members_of_their_own(tmp_path):
    text_tars(tmp_path, ROWS)
    made = index_tars([tmp_path])
    expected = [{"id": f"k{n}", "title": r["title"], "body": r["body"]} for n, r in enumerate(ROWS)]
    assert list(made) == expected
    assert made.manifest.counts["id_from_key"] == 11
    assert made.manifest.layout is not None
    assert [m.suffix for m in made.manifest.layout.members] == ["title.txt", "body.txt"]
    assert verify_set(tmp_path).ok


def test_json_with_the_body_beside_it_and_other_members(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            ("x/0.jpg", b"\xff\xd8"),
            ("x/0.json", json_bytes({"headline": "T0", "uuid": "u0", "n": 2**70})),
            ("x/0.body", "Körper".encode()),
            ("x/1.JSON", json_bytes({"headline": "T1", "uuid": 17})),
            ("x/1.body", b""),
            ("__meta__/info.json", b"{}"),
            ("README", b"hello"),
        ],
    )
    made = index_tars([tmp_path / "a.tar"])
    assert list(made) == [
        {"id": "u0", "title": "T0", "body": "Körper"},
        {"id": "17", "title": "T1", "body": ""},
    ]
    assert made.manifest.counts == {
        "body_empty": 1, "other_members": 3, "rows": 2, "written": 2
    }  # fmt: skip
    assert made.key(0) == "x/0"


def test_members_and_fields_given_by_option(tmp_path):
    record = {"meta": {"no": "7"}, "h": {"main": " A  title "}, "p": ["One.", "Two."]}
    write_tar(tmp_path / "a.tar", [("k.article.js", json_bytes(record)), ("k.txt", b"no")])
    fields = ArticleFields(id="meta.no", title="h.main", body="p")
    made = index_tars([tmp_path], members={"json": ".Article.js"}, fields=fields)
    assert list(made) == [{"id": "7", "title": "A title", "body": "One.\nTwo."}]
    with pytest.raises(DataError, match=r"no row has the field 'meta\.nr'"):
        index_tars([tmp_path], members={"json": "article.js"}, fields=ArticleFields(
            id="meta.nr", title="h.main"), force=True)  # fmt: skip
    assert list(ShardSet.open(tmp_path)) == list(made)
    with pytest.raises(UsageError, match="neither json nor one of"):
        index_tars([tmp_path], members={"picture": "jpg"}, force=True)
    with pytest.raises(UsageError, match="without JSON members"):
        index_tars([tmp_path], members={"title": "txt"}, fields=fields, force=True)


def test_no_title_to_be_found_is_an_error_with_the_suffixes(tmp_path):
    write_tar(tmp_path / "a.tar", [("k.jpg", b"x"), ("k.cls", b"3")])
    with pytest.raises(DataError, match=r"its members end in: \.jpg, \.cls; give --member"):
        index_tars([tmp_path])


def test_out_leaves_the_tars_folder_alone(tmp_path):
    tars = json_tars(tmp_path / "tars", ROWS)
    (tmp_path / "tars").chmod(0o555)
    made = index_tars([tmp_path / "tars"], tmp_path / "set")
    (tmp_path / "tars").chmod(0o755)
    assert sorted((tmp_path / "tars").iterdir()) == tars
    assert list(ShardSet.open(tmp_path / "set")) == ROWS
    assert all((made.path / tar.name).is_symlink() for tar in tars)
    assert {shard.name for shard in made.shards} == {tar.name for tar in tars}
    assert verify_set(made.path).ok
    # The same set wherever its manifest is.
    beside = index_tars([tmp_path / "tars"])
    assert beside.fingerprint == made.fingerprint


def test_fewer_tars_leave_nothing_of_the_others(tmp_path):
    tars = json_tars(tmp_path / "tars", ROWS)
    outs = (None, tmp_path / "set")
    for out in outs:
        index_tars(tars, out)
    tars[0].unlink()
    for out in outs:
        fewer = index_tars(tars[1:], out, force=True)
        assert list(fewer) == ROWS[4:]
        assert verify_set(fewer.path).problems == ()


def test_some_tars_of_a_folder_need_a_folder_of_their_own(tmp_path):
    tars = json_tars(tmp_path / "tars", ROWS)
    with pytest.raises(UsageError, match="give --out"):
        index_tars(tars[:2])
    assert index_tars([tars[2], tars[0]], tmp_path / "set").num_rows == 7
    with pytest.raises(UsageError, match="is the folder of the tars"):
        index_tars(tars[:2], tmp_path / "tars")
    twin = write_tar(tmp_path / "other" / tars[0].name, [("a.json", b"{}")])
    with pytest.raises(DataError, match="have the same name"):
        index_tars([tars[0], twin], tmp_path / "twins")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_compressed_tars_are_refused_with_the_remedy(tmp_path, name):
    plain = write_tar(tmp_path / "plain" / "a.tar", [("k.json", json_bytes(ROWS[0]))])
    (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DataError, match=r"is compressed.*gunzip"):
        index_tars([tmp_path])
    with pytest.raises(DataError, match=r"is compressed.*gunzip"):
        index_tars([tmp_path / name], tmp_path / "out")
    (tmp_path / "a.tar").write_bytes(plain.read_bytes())
    assert index_tars([tmp_path]).num_rows == 1


def test_names_that_a_set_cannot_use(tmp_path):
    for name in ("column.tar", "a\nb.tar", "x" * 198 + ".tar"):
        path = write_tar(tmp_path / "t" / name, [("k.json", json_bytes(ROWS[0]))])
        with pytest.raises(DataError, match="cannot name a shard"):
            index_tars([path])
        path.unlink()
    path = write_tar(tmp_path / "t" / "…my shard (1).tar", [("k.json", json_bytes(ROWS[0]))])
    assert index_tars([path]).sample(0) == ROWS[0]


def test_a_manifest_cannot_name_a_tar_elsewhere(tmp_path):
    json_tars(tmp_path, ROWS)
    made = index_tars([tmp_path])
    data = read_json(made.path / MANIFEST_NAME)
    for name in ("../a.tar", "/etc/a.tar", "x/a.tar", ".a.tar", "a.idx", "a\\b.tar", "..tar", 3):
        data["shards"][0]["name"] = name
        write_json_atomic(made.path / MANIFEST_NAME, data)
        said = "only files of its own folder" if isinstance(name, str) else "Expected `str`, got"
        with pytest.raises(DamageError, match=said):
            read_manifest(made.path)


@pytest.mark.parametrize(
    "layout",
    [
        None, 3, {}, {"members": []}, {"members": "json"}, {"members": [{"suffix": "json"}]},
        {"members": [{"suffix": "json", "field": "picture"}]},
        {"members": [{"suffix": 1, "field": "json"}]},
        {"members": [{"suffix": "json", "field": "json"}] * 2},
        {"members": [{"suffix": "json", "field": "json"}], "fields": {"colour": "c"}},
        {"members": [{"suffix": "json", "field": "json"}], "fields": [1]},
    ],
)  # fmt: skip
def test_a_damaged_layout_is_refused(tmp_path, layout):
    json_tars(tmp_path, ROWS)
    index_tars([tmp_path])
    data = read_json(tmp_path / MANIFEST_NAME) | {"layout": layout}
    write_json_atomic(tmp_path / MANIFEST_NAME, data)
    with pytest.raises(DamageError, match="layout"):
        ShardSet.open(tmp_path)


def test_another_set_or_anothers_index_is_not_overwritten(tmp_path):
    json_tars(tmp_path, ROWS)
    index_tars([tmp_path])
    with pytest.raises(DataError, match="already is a shard set"):
        index_tars([tmp_path])
    (tmp_path / MANIFEST_NAME).unlink()
    index_tars([tmp_path])  # what a killed run left is ours
    (tmp_path / MANIFEST_NAME).unlink()
    (tmp_path / "shard_0001.idx").write_bytes(b"their own")
    with pytest.raises(DataError, match=r"shard_0001\.idx exists and was not made here"):
        index_tars([tmp_path])
    assert (tmp_path / "shard_0001.idx").read_bytes() == b"their own"
    assert list(index_tars([tmp_path], force=True)) == ROWS


def test_a_forced_build_does_not_delete_them(tmp_path):
    tars = [tar.rename(tmp_path / f"news-{n}.tar") for n, tar in enumerate(json_tars(
        tmp_path / "tars", ROWS))]  # fmt: skip
    index_tars([tmp_path])
    with (
        pytest.raises(DataError, match="holds tars made elsewhere"),
        ShardWriter(tmp_path, "articles", force=True),
    ):
        pass
    assert all(tar.exists() for tar in tars)


def test_indexes_are_made_again(tmp_path):
    json_tars(tmp_path, ROWS)
    made = index_tars([tmp_path])
    (tmp_path / "shard_0001.idx").unlink()
    (tmp_path / "shard_0002.idx").write_bytes(b"x" * made.shards[2].index_size)
    with pytest.raises(DamageError, match="shard_0001"):
        ShardSet.open(tmp_path)
    assert rebuild_indexes(tmp_path) == ["shard_0001.idx", "shard_0002.idx"]
    assert list(ShardSet.open(tmp_path)) == ROWS
    assert rebuild_indexes(tmp_path) == []
    write_tar(tmp_path / "shard_0001.tar", [("s.json", json_bytes(ROWS[0]))])
    with pytest.raises(DamageError, match=r"shard_0001\.tar is not the shard of the manifest"):
        rebuild_indexes(tmp_path)


D4 = {
    "key is not UTF-8": [("\udcff.json", 0), ("b.json", 1)],
    "duplicate key": [("a.json", 0), ("a.json", 1)],
    "dot in key": [("N1.v2.json", 0), ("b.json", 1)],
    "duplicate id": [("a.json", 0), ("b.json", 0)],
    "bad UTF-8": [("a.json", b'{"title": "\xff"}'), ("b.json", 1)],
    "bad JSON": [("a.json", b'{"title": "x"'), ("b.json", 1)],
    "not a JSON object": [("a.json", b"[1]"), ("b.json", 1)],
    "title is not text": [("a.json", b'{"title": {"x": 1}}'), ("b.json", 1)],
    "missing title": [("a.json", b'{"title": " "}'), ("b.json", 1)],
}


@pytest.mark.parametrize("reason", D4)
def test_d4_samples_are_refused_one_by_one(tmp_path, reason):
    members = [
        (name, data if isinstance(data, bytes) else json_bytes(ROWS[data]))
        for name, data in D4[reason]
    ]
    members.append(("z.json", json_bytes(ROWS[9])))
    write_tar(tmp_path / "a.tar", members, format=tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match=f"1 of 3 samples were refused.*{reason} 1; the first: a.t"):
        index_tars([tmp_path], max_refused=0.3)
    made = index_tars([tmp_path], max_refused=0.5)
    assert made.num_rows == 2
    assert made.sample(1) == ROWS[9]
    assert made.manifest.refused == {reason: 1}
    assert made.manifest.counts["refused"] == 1
    assert [(source, why) for source, _, why in refusals(tmp_path)] == [("a.tar", reason)]
    entry = json.loads((tmp_path / "refused.jsonl").read_text())
    with tarfile.open(tmp_path / "a.tar") as tar:
        offsets = {member.offset_data for member in tar}
    assert entry["offset"] in offsets
    # Remade indexes leave out the same samples.
    (tmp_path / "a.idx").unlink()
    assert rebuild_indexes(tmp_path) == ["a.idx"]


def test_d4_a_member_nested_too_deep_is_bad_json(tmp_path):
    deep = b'{"title": "t", "body": ' + b"[" * 1010 + b'"x"' + b"]" * 1010 + b"}"
    write_tar(tmp_path / "a.tar", [("a.json", deep), ("b.json", json_bytes(ROWS[1]))])
    made = index_tars([tmp_path], max_refused=0.5)
    assert list(made) == [ROWS[1]] and made.manifest.refused == {"bad JSON": 1}


def test_d4_interleaved_keys_are_joined(tmp_path):
    """webdataset makes four half samples of these."""
    a, b = text_members("a", "TA", "BA"), text_members("b", "TB", "BB")
    write_tar(tmp_path / "a.tar", [a[0], b[0], a[1], b[1]])
    made = index_tars([tmp_path])
    assert list(made) == [
        {"id": "a", "title": "TA", "body": "BA"},
        {"id": "b", "title": "TB", "body": "BB"},
    ]
    assert made.manifest.counts["interleaved"] == 2


def test_d4_dots_do_not_mix_samples(tmp_path):
    members = [*text_members("N1.v2", "a", "b"), *text_members("N1.v3", "c", "d")]
    write_tar(tmp_path / "a.tar", [*members, *text_members("ok", "e", "f")])
    made = index_tars([tmp_path], members={"title": "title.txt", "body": "body.txt"}, max_refused=1)
    assert [sample["title"] for sample in made] == ["e"]
    assert made.manifest.refused == {"dot in key": 4}


def test_d4_missing_and_empty_members(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            ("no-body.title.txt", b"T0"),
            ("no-title.body.txt", b"B1"),
            ("empty.title.txt", b"T2"),
            ("empty.body.txt", b""),
            ("blank.title.txt", b" \n"),
            ("blank.body.txt", b"B3"),
        ],
    )
    made = index_tars([tmp_path], max_refused=0.5)
    assert [(s["id"], s["body"]) for s in made] == [("no-body", ""), ("empty", "")]
    assert made.manifest.refused == {"missing title": 2}
    assert made.manifest.counts["body_empty"] == 2
    assert sorted(refusals(tmp_path)) == [
        ("a.tar", 2, "missing title"), ("a.tar", 4, "missing title")
    ]  # fmt: skip


def test_d4_huge_unicode_and_odd_members(tmp_path):
    body = "körper 新聞 \U0001f5de " * 200_000
    members = [
        ("folder", None),
        ("新聞/ключ.json", json_bytes({"title": "ü", "body": body})),
        ("link.json", "新聞/ключ.json"),
        ("long.json", b"{" + b" " * (17 << 20)),
    ]
    write_tar(tmp_path / "a.tar", members)
    made = index_tars([tmp_path], max_refused=0.5)
    assert list(made) == [{"id": "新聞/ключ", "title": "ü", "body": body.strip()}]
    assert made.manifest.refused == {"member too long": 1}
    assert made.manifest.counts["no_files"] == 2


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1234.5])
def test_long_names_in_every_tar_format(tmp_path, format, mtime):
    length = 90 if format == tarfile.USTAR_FORMAT else 300
    names = ["a" * 60 + "/" + "b" * length, "c" * 95, "./x/y"]
    if format != tarfile.USTAR_FORMAT:
        names.append("ö" * 80)
    write_tar(
        tmp_path / "a.tar",
        [(f"{name}.json", json_bytes(ROWS[n])) for n, name in enumerate(names)],
        format=format,
        mtime=mtime if format == tarfile.PAX_FORMAT else 0,
    )
    made = index_tars([tmp_path])
    assert [made.key(row) for row in range(made.num_rows)] == names
    assert list(made) == ROWS[: len(names)]


@pytest.mark.parametrize("signed", [False, True])
def test_headers_of_old_writers(tmp_path, signed):
    """Name without magic, a folder marked by its slash, a checksum over signed bytes."""

    def old(name, data, slash=False):
        header = bytearray(512)
        header[: len(name)] = name
        header[100:136] = b"000644 \x00" + b"000000 \x00" * 2 + b"%011o " % len(data)
        header[148:156] = b" " * 8
        total = sum(header) - (256 * sum(byte > 127 for byte in header) if signed else 0)
        header[148:156] = b"%06o\0 " % total
        return bytes(header) + data + bytes(-len(data) % 512)

    tar = old(b"folder/", b"") + old("ö.json".encode(), json_bytes(ROWS[0])) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(tar)
    made = index_tars([tmp_path])
    assert (made.key(0), made.sample(0)) == ("ö", ROWS[0])
    assert made.manifest.counts["no_files"] == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=200)), min_size=1, max_size=12))
def test_any_texts_come_back_as_webdataset_reads_them(tmp_path_factory, texts):
    """A sample we accept is the one that webdataset yields under the same key."""
    import webdataset

    folder = tmp_path_factory.mktemp("tars")
    members = [
        member
        for n, (title, body) in enumerate(texts)
        for member in text_members(f"{n}", title, body)
    ]
    path = write_tar(folder / "a.tar", members)
    theirs = {
        sample["__key__"]: sample
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    }
    accepted = [n for n, (title, _) in enumerate(texts) if title.split()]
    if not accepted:
        with pytest.raises(DataError, match="no samples"):
            index_tars([folder], max_refused=1)
        return
    made = index_tars([folder], max_refused=1)
    assert [made.key(row) for row in range(made.num_rows)] == [str(n) for n in accepted]
    for row, sample in enumerate(made):
        raw = theirs[made.key(row)]
        assert sample["title"] == " ".join(raw["title.txt"].decode().split())
        assert sample["body"] == raw["body.txt"].decode().strip()


def test_webdataset_reads_the_tars_of_a_set_sample_for_sample(tmp_path):
    import webdataset

    json_tars(tmp_path, ROWS)
    made = index_tars([tmp_path])
    urls = [str(made.path / shard.name) for shard in made.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"] for sample in read] == list(made)
    assert [sample["__key__"] for sample in read] == [made.key(row) for row in range(11)]


def test_everything_else_works_on_such_a_set(tmp_path):
    """Clicks, statistics and tokens, as on a set of our own."""
    from helpers.sets import make_tokens

    json_tars(tmp_path / "tars", ROWS)
    made = index_tars([tmp_path / "tars"])
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0\n")
    log = build_impressions([tmp_path / "behaviors.tsv"], made, tmp_path / "log").shard_set
    assert log.sample(0)["history"] == [1, 2]
    assert compute_stats(made).samples == 11
    tokens = make_tokens(made, tmp_path / "tokenizer", vocab_size=80)
    assert tokens.num_rows == 11


def test_threads_share_a_set_while_shards_are_closed_and_opened(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr("shards.reader._MAX_OPEN_SHARDS", 1)
    text_tars(tmp_path, ROWS, per_tar=2)
    made = index_tars([tmp_path])
    expected = list(made)
    rows = [row for start in range(50) for row in range(start % 11, 11)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(made.sample, rows))
    assert found == [expected[row] for row in rows]
    assert len(made._opened) == 1
