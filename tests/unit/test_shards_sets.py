"""Writing and reading shard sets: bytes, rows, manifests, what is published and when."""

import hashlib
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import articles
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DamageError, DataError
from shards.files import atomic_file, fingerprint, read_json, write_json_atomic
from shards.index import read_index
from shards.manifest import MANIFEST_NAME, Manifest, ShardInfo, read_manifest, write_manifest
from shards.reader import ShardSet
from shards.writer import ShardWriter, encode_sample


def write_set(folder: Path, rows: list[dict], samples_per_shard: int = 4, **options) -> ShardSet:
    with ShardWriter(folder, "articles", samples_per_shard=samples_per_shard, **options) as writer:
        for number, row in enumerate(rows):
            assert writer.add(row) == number
        return writer.finish()


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_rows_come_back_by_number_and_by_shard(tmp_path):
    rows = articles(11)
    made = write_set(tmp_path / "set", rows)
    assert (made.num_rows, made.num_shards, made.kind) == (11, 3, "articles")
    assert made.shard_starts.tolist() == [0, 4, 8, 11]
    order = np.random.default_rng(0).permutation(11).tolist()
    assert [made.sample(row) for row in order] == [rows[row] for row in order]
    assert list(made.samples(1)) == rows[4:8]
    assert list(made) == rows
    assert made.locate(8) == (2, 0)
    for row in (-1, 11):
        with pytest.raises(IndexError, match="rows 0 to 10"):
            made.sample(row)


def test_any_webdataset_reader_reads_the_shards(tmp_path):
    import webdataset

    rows = [*articles(9), {"id": "x.y/z", "title": "dots. and — ünïcode", "body": ""}]
    made = write_set(tmp_path / "set", rows)
    urls = [str(made.path / shard.name) for shard in made.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"] for sample in read] == rows
    assert [sample["__key__"] for sample in read] == [f"{row:09d}" for row in range(10)]


def test_the_index_says_where_the_members_of_the_tar_are(tmp_path):
    made = write_set(tmp_path / "set", articles(7))
    for number, shard in enumerate(made.shards):
        index = read_index(made.path / shard.index_name, shard.samples)
        with tarfile.open(made.path / shard.name) as tar:
            members = tar.getmembers()
        assert [(m.offset_data, m.size) for m in members] == [
            (int(entry["offset"]), int(entry["length"])) for entry in index
        ]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o444, "")}
        assert made.index(number).tolist() == index.tolist()


def test_tars_are_those_of_webdatasets_writer(tmp_path):
    from webdataset.writer import TarWriter

    rows = [*articles(30), {"id": "empty", "title": "", "body": "x" * 70_000}]
    made = write_set(tmp_path / "set", rows, samples_per_shard=1000)
    with TarWriter(
        str(tmp_path / "theirs.tar"), user="", group="", mode=0o444, encoder=False, mtime=0
    ) as tar:
        for row, sample in enumerate(rows):
            tar.write({"__key__": f"{row:09d}", "json": encode_sample(sample)})
    ours = (made.path / "news-000000.tar").read_bytes()
    assert ours == (tmp_path / "theirs.tar").read_bytes()
    assert hashlib.sha256(ours).hexdigest() == made.shards[0].sha256


def as_json(sample: dict) -> bytes:
    text = json.dumps(sample, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(), st.one_of(st.text(), st.integers(), st.floats(-1e30, 1e30), st.booleans())
    )
)
def test_samples_are_encoded_as_pythons_json_does(sample):
    assert encode_sample(sample) == as_json(sample)


def test_every_character_is_encoded_as_pythons_json_does():
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    for sample in ({"text": every}, {every: ""}, {"n": 1, "text": every}, {}):
        assert encode_sample(sample) == as_json(sample)
    with pytest.raises(UnicodeEncodeError):
        encode_sample({"text": "\ud800"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_sample({"n": float("nan")})


def test_the_same_rows_give_the_same_bytes(tmp_path):
    first = write_set(tmp_path / "a", articles(10))
    second = write_set(tmp_path / "b", articles(10))
    assert contents(first.path) == contents(second.path)
    other = write_set(tmp_path / "c", articles(10, first=1))
    fewer = write_set(tmp_path / "d", articles(10), samples_per_shard=5)
    assert len({first.fingerprint, other.fingerprint, fewer.fingerprint}) == 3


def test_an_empty_and_a_huge_sample_round_trip(tmp_path):
    rows = [
        {"id": "1", "title": "t", "body": ""},
        {"id": "2", "title": "t", "body": "wörter " * 400_000},
        {"id": "3", "title": "\u2028 \x00 \U0001f600", "body": "a\tb\r\nc"},
    ]
    assert list(write_set(tmp_path / "set", rows)) == rows


def test_a_copy_in_another_process_reads_too(tmp_path):
    made = write_set(tmp_path / "set", articles(5))
    # Our own object, as multiprocessing passes it on; nothing is read from a file.
    # Sets travel to worker processes; what is read is what was written in this line.
    copy = pickle.loads(pickle.dumps(made))
    assert list(copy) == list(made)


def test_many_shards_are_read_with_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.reader._MAX_OPEN_SHARDS", 2)
    made = write_set(tmp_path / "set", articles(9), samples_per_shard=1)
    for row in (0, 8, 3, 0, 5, 8):
        assert made.sample(row)["id"] == f"N{row}"
    assert len(made._opened) == 2


def test_a_folder_without_manifest_is_not_a_set(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        ShardSet.open(tmp_path / "nothing")
    made = write_set(tmp_path / "set", articles(3))
    (made.path / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match=r"not a shard set: it has no manifest\.json"):
        ShardSet.open(made.path)


def test_the_other_kind_is_refused(tmp_path):
    made = write_set(tmp_path / "set", articles(3))
    with pytest.raises(DataError, match="holds articles, expected a set of impressions"):
        ShardSet.open(made.path, kind="impressions")


@pytest.mark.parametrize("end", ["error", "no finish", "nothing written"])
def test_an_unfinished_write_leaves_nothing(tmp_path, end):
    folder = tmp_path / "deep" / "set"
    expected = {"error": RuntimeError, "nothing written": DataError}.get(end)
    try:
        with ShardWriter(folder, "articles", samples_per_shard=2) as writer:
            if end != "nothing written":
                for row in articles(5):
                    writer.add(row)
            if end == "error":
                raise RuntimeError("stop")
            if end == "nothing written":
                writer.finish()
    except (RuntimeError, DataError) as error:
        assert isinstance(error, expected or ())
    else:
        assert expected is None
    assert not folder.exists()


def test_a_set_is_not_overwritten_without_force(tmp_path):
    former = write_set(tmp_path / "set", articles(9))
    (former.path / "columns").mkdir()
    (former.path / "notes.txt").write_text("mine")
    before = contents_of_files(former.path)
    with pytest.raises(DataError, match="--force"):
        write_set(former.path, articles(3))
    with (
        pytest.raises(RuntimeError),
        ShardWriter(former.path, "articles", samples_per_shard=2, force=True) as writer,
    ):
        writer.add(articles(1)[0])
        raise RuntimeError("stop")
    assert contents_of_files(former.path) == before
    forced = write_set(former.path, articles(3), force=True)
    assert list(forced) == articles(3)
    assert sorted(path.name for path in forced.path.iterdir()) == [
        "manifest.json",
        "news-000000.idx",
        "news-000000.tar",
        "notes.txt",
    ]


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_set_that_was_built_again_is_not_taken_for_the_one_that_was_open(tmp_path):
    # Made here, as a loader sends a set to its workers.
    travelling = pickle.dumps(write_set(tmp_path / "set", articles(3)))
    write_set(tmp_path / "set", articles(3, first=1), force=True)
    with pytest.raises(DataError, match="was built again since this run opened it"):
        pickle.loads(travelling)


def test_what_a_killed_build_left_is_cleared(tmp_path):
    leftover = tmp_path / "set" / ".building-99999-00000000"
    leftover.mkdir(parents=True)
    (leftover / "news-000001.tar").write_bytes(b"half")
    # It was killed while it moved its shards into place.
    (tmp_path / "set" / "news-000000.tar").write_bytes(b"whole")
    (tmp_path / "set" / "news-000007.tar").write_bytes(b"whole")
    made = write_set(tmp_path / "set", articles(3))
    assert list(made) == articles(3)
    assert not leftover.exists()
    assert not (made.path / "news-000007.tar").exists()


def test_shards_of_unknown_origin_are_left_alone(tmp_path):
    theirs = tmp_path / "set" / "news-000003.tar"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    with pytest.raises(DataError, match=r"has no manifest but holds news-000003\.tar"):
        write_set(tmp_path / "set", articles(3))
    assert [path.name for path in theirs.parent.iterdir()] == [theirs.name]
    assert write_set(tmp_path / "set", articles(3), force=True).num_rows == 3
    assert not theirs.exists()


def test_two_builds_of_one_set_do_not_meet(tmp_path):
    with ShardWriter(tmp_path / "set", "articles") as writer:
        writer.add(articles(1)[0])
        with (
            pytest.raises(DataError, match="another build is writing"),
            ShardWriter(tmp_path / "set", "articles"),
        ):
            pass
        assert writer.finish().num_rows == 1


def test_the_manifest_cannot_name_a_file_elsewhere(tmp_path):
    made = write_set(tmp_path / "set", articles(3))
    path = made.path / MANIFEST_NAME
    for name in ("../news-000000.tar", "/etc/news-000000.tar", "a/news-000000.tar", "news-0.tar"):
        data = read_json(path)
        data["shards"][0]["name"] = name
        (tmp_path / "other").mkdir(exist_ok=True)
        write_json_atomic(tmp_path / "other" / MANIFEST_NAME, data)
        with pytest.raises(DamageError, match="only files of its own folder"):
            read_manifest(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pictures"}, "kind 'pictures' is unknown; known are articles, impressions"),
        ({"format_version": 3}, "format_version is 3"),
        ({"shards": {}}, r"Expected `array`, got `object` - at `\$\.shards`"),
        ({"articles_fingerprint": "0" * 64}, "fingerprint does not fit"),
        ({"fingerprint": "0" * 64}, "fingerprint does not fit"),
        ({"fields": "id"}, r"Expected `array`, got `str` - at `\$\.fields`"),
        ({"fields": ["id", ""]}, r"Expected `str` of length >= 1 - at `\$\.fields"),
        ({"refused": {"bad JSON": -1}}, r"Expected `int` >= 0 - at `\$\.refused"),
        ({"source": []}, r"Expected `object`, got `array` - at `\$\.source`"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, change, message):
    made = write_set(tmp_path / "set", articles(3))
    write_json_atomic(made.path / MANIFEST_NAME, read_json(made.path / MANIFEST_NAME) | change)
    with pytest.raises(DataError, match=message):
        ShardSet.open(made.path)


@pytest.mark.parametrize(
    "change",
    [{"samples": -1}, {"bytes": True}, {"sha256": "xyz"}, {"samples": "3"}],
)
def test_a_shard_entry_of_the_wrong_form_is_refused(tmp_path, change):
    made = write_set(tmp_path / "set", articles(3))
    data = read_json(made.path / MANIFEST_NAME)
    data["shards"][0] |= change
    write_json_atomic(made.path / MANIFEST_NAME, data)
    with pytest.raises(DamageError, match=r"Expected .* - at `\$\.shards\[0\]\."):
        ShardSet.open(made.path)


shard_infos = st.lists(
    st.builds(
        lambda samples, size, digest: (samples, size, digest.hex()),
        st.integers(0, 10**9),
        st.integers(0, 10**12),
        st.binary(min_size=32, max_size=32),
    ),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(
    shard_infos,
    st.sampled_from(["articles", "impressions"]),
    st.dictionaries(st.text(), st.integers(0)),
)
def test_manifests_round_trip(tmp_path_factory, infos, kind, counts):
    folder = tmp_path_factory.mktemp("manifest")
    shards = tuple(ShardInfo(f"news-{n:06d}.tar", *info) for n, info in enumerate(infos))
    made = Manifest(kind, shards, ("id", "title"), {"labelled": False}, counts, counts)
    write_manifest(folder, made)
    assert read_manifest(folder) == made


def test_a_fingerprint_is_of_the_content_not_of_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2, "é"]}) == fingerprint({"b": [2, "é"], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    canonical = b'{"a":"\\u00e9"}'
    assert fingerprint({"a": "é"}) == hashlib.sha256(canonical).hexdigest()


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("former")
    with pytest.raises(RuntimeError), atomic_file(path, "w") as file:
        file.write("half")
        raise RuntimeError("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert path.read_text() == "former"
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "former"
    assert path.read_bytes() == b"new"
    path.write_text("{")
    with pytest.raises(DamageError, match="does not hold JSON"):
        read_json(path)
    with pytest.raises(ValueError, match="mode"), atomic_file(path, "ab"):
        pass


def test_sets_built_here_stay_as_they_were_at_first(tmp_path):
    """Older versions read them, and fingerprints of old runs still hold."""
    made = write_set(tmp_path / "set", articles(3))
    stored = read_json(made.path / MANIFEST_NAME)
    assert stored["format_version"] == 1
    assert list(stored) == [
        "format_version", "kind", "fingerprint", "articles_fingerprint", "samples", "fields",
        "counts", "refused", "source", "shards", "checksum",
    ]  # fmt: skip
    assert [set(shard) for shard in stored["shards"]] == [{"name", "samples", "bytes", "sha256"}]
    assert made.fingerprint == fingerprint(
        {
            "format_version": 1,
            "kind": "articles",
            "shards": [[shard["samples"], shard["sha256"]] for shard in stored["shards"]],
            "articles_fingerprint": None,
        }
    )
