"""Damage of shard sets at rest: each kind is found by verify, and never read as if nothing were.

Whatever happens to a file of a set, `verify` names it, and reading every sample either fails with
DamageError or gives exactly what was written.
"""

import shutil
import tarfile

import numpy as np
import pytest
from helpers.corpora import articles

from shards.errors import DamageError, DataError
from shards.files import read_json, write_json_atomic
from shards.index import INDEX_DTYPE
from shards.reader import ShardSet
from shards.reindex import rebuild_indexes
from shards.verify import verify_set
from shards.writer import ShardWriter

ROWS = articles(12)
SECOND = "news-000001.tar"


@pytest.fixture
def made(tmp_path):
    """Three shards of four samples; the tests damage the second."""
    with ShardWriter(tmp_path / "set", "articles", samples_per_shard=4) as writer:
        for row in ROWS:
            writer.add(row)
        return writer.finish()


def entry(made, place):
    """(header offset, data offset, length) of a sample of the second shard."""
    offset, length, _ = made.index(1)[place].item()
    return offset - 512, offset, length


def damage(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(change(data)))


def flip(at, bit=1):
    def change(data):
        data[at] ^= bit
        return data

    return change


def problems(folder):
    return [str(problem) for problem in verify_set(folder).problems]


def read_all(folder):
    return list(ShardSet.open(folder))


def test_an_intact_set_has_no_problems(made):
    verification = verify_set(made.path)
    assert verification.ok
    assert verification.manifest == made.manifest


CUTS = {
    "at a header boundary": lambda header, data, length: header,
    "in a header": lambda header, data, length: header + 100,
    "in data": lambda header, data, length: data + length // 2,
    "in padding": lambda header, data, length: data + length + 1,
}


@pytest.mark.parametrize("where", CUTS)
def test_a_cut_shard(made, where):
    header, data, length = entry(made, 2)
    cut = CUTS[where](header, data, length)
    damage(made.path / SECOND, lambda content: content[:cut])
    with pytest.raises(DamageError, match=SECOND):
        ShardSet.open(made.path)
    found = problems(made.path)
    assert any(f"{SECOND}: has {cut} bytes" in problem for problem in found)
    place = header if cut < data else data
    assert any(f"{SECOND}, offset {place}: the tar ends" in problem for problem in found)
    # A set that was open before: samples in front of the cut are read, the others refused.
    assert made.sample(5) == ROWS[5]
    if where != "in padding":
        with pytest.raises(DamageError, match=rf"{SECOND}, offset {data} \(row 6\): it ends"):
            made.sample(6)


def test_missing_end_blocks(made):
    size = made.shards[1].bytes
    damage(made.path / SECOND, lambda content: content[: size - 512])
    assert any("blocks that end the tar" in problem for problem in problems(made.path))
    with pytest.raises(DamageError, match=SECOND):
        ShardSet.open(made.path)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("bit", [1, 128])
def test_a_flipped_bit_in_data(made, place, bit):
    _, data, length = entry(made, place)
    damage(made.path / SECOND, flip(data + length - 1, bit))
    found = problems(made.path)
    assert any(f"{SECOND}: sha256" in problem for problem in found)
    assert any(f"{SECOND}, offset {data}: the checksum" in problem for problem in found)
    opened = ShardSet.open(made.path)
    with pytest.raises(DamageError, match=rf"{SECOND}, offset {data} \(row {4 + place}\)"):
        opened.sample(4 + place)
    others = [row for row in range(12) if row != 4 + place]
    assert [opened.sample(row) for row in others] == [ROWS[row] for row in others]


@pytest.mark.parametrize("at", [0, 8, 124, 148, 156, 257])
def test_a_flipped_bit_in_a_header(made, at):
    header, _, _ = entry(made, 1)
    damage(made.path / SECOND, flip(header + at))
    found = problems(made.path)
    assert any(f"{SECOND}, offset {header}: the header of sample 1" in text for text in found)
    # The other samples of the shard are checked nevertheless, and are intact.
    assert len(found) == 2


def test_zeros_over_a_block(made):
    header, data, _ = entry(made, 1)

    def wipe(start):
        def change(content):
            content[start : start + 512] = bytes(512)
            return content

        return change

    damage(made.path / SECOND, wipe(header))
    assert any(f"offset {header}" in problem for problem in problems(made.path))
    with pytest.raises(DamageError, match=r"the member there is not 000000005\.json"):
        read_all(made.path)
    damage(made.path / SECOND, wipe(data))
    with pytest.raises(DamageError, match=SECOND):
        read_all(made.path)


def test_something_in_the_padding_or_behind_the_end(made):
    _, data, length = entry(made, 0)
    damage(made.path / SECOND, flip(data + length))
    assert any("padding of sample 0 is not zero" in problem for problem in problems(made.path))
    damage(made.path / SECOND, flip(data + length))
    assert verify_set(made.path).ok
    damage(made.path / SECOND, flip(made.shards[1].bytes - 1))
    assert any("after the last sample" in problem for problem in problems(made.path))
    damage(made.path / SECOND, lambda content: content + bytes(10240))
    assert any(f"{SECOND}: has" in problem for problem in problems(made.path))


@pytest.mark.parametrize("suffix", [".tar", ".idx"])
def test_a_missing_file(made, suffix):
    path = (made.path / SECOND).with_suffix(suffix)
    path.unlink()
    with pytest.raises(DamageError, match=path.name):
        ShardSet.open(made.path)
    assert any(path.name in problem for problem in problems(made.path))


def test_a_renamed_and_an_extra_shard(made):
    (made.path / SECOND).rename(made.path / "news-000007.tar")
    found = problems(made.path)
    assert any(f"{SECOND}: cannot be read" in problem for problem in found)
    assert "news-000007.tar: is not in the manifest" in found
    (made.path / "news-000007.tar").rename(made.path / SECOND)
    shutil.copy(made.path / SECOND, made.path / "news-000003.tar")
    assert problems(made.path) == ["news-000003.tar: is not in the manifest"]


@pytest.mark.parametrize("with_index", [True, False])
def test_swapped_shards_of_one_size(tmp_path, with_index):
    same = [{"id": f"{n}", "title": "t", "body": f"{n}" * 50} for n in range(8)]
    with ShardWriter(tmp_path / "set", "articles", samples_per_shard=4) as writer:
        for row in same:
            writer.add(row)
        made = writer.finish()
    assert made.shards[0].bytes == made.shards[1].bytes
    for suffix in (".tar", ".idx") if with_index else (".tar",):
        first, second = (made.path / f"news-00000{n}{suffix}" for n in (0, 1))
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
    # Sizes fit, so opening cannot see it; the first read does.
    opened = ShardSet.open(made.path)
    for row in range(8):
        with pytest.raises(DamageError, match=r"news-00000[01]\.tar, offset"):
            opened.sample(row)
    found = problems(made.path)
    assert any("it is what news-000001.tar should be" in problem for problem in found)
    assert any("expected member 000000000.json" in problem for problem in found)


def test_a_shard_replaced_by_another_of_the_same_size(made):
    size = made.shards[1].bytes
    (made.path / SECOND).write_bytes(np.random.default_rng(0).bytes(size))
    assert any(f"{SECOND}: sha256" in problem for problem in problems(made.path))
    with pytest.raises(DamageError, match=SECOND):
        read_all(made.path)


def test_a_shard_of_another_build_with_its_index(tmp_path, made):
    with ShardWriter(tmp_path / "other", "articles", samples_per_shard=4) as writer:
        for row in articles(12, first=20):
            writer.add(row)
        other = writer.finish()
    assert other.shards[1].bytes == made.shards[1].bytes
    for name in (SECOND, "news-000001.idx"):
        shutil.copy(other.path / name, made.path / name)
    # Names and checksums fit one another: only the manifest knows.
    assert problems(made.path) == [f"{SECOND}: sha256 is not that of the manifest"]


def stale_length(index):
    index["length"][1] -= 1


def stale_crc(index):
    index["crc32"][1] ^= 1


def stale_offset(index):
    index["offset"][1] += 512


def stale_order(index):
    index[[1, 2]] = index[[2, 1]]


@pytest.mark.parametrize("change", [stale_length, stale_crc, stale_offset, stale_order])
def test_a_stale_index_is_found_and_made_again(made, change):
    path = made.path / "news-000001.idx"
    index = np.frombuffer(path.read_bytes(), INDEX_DTYPE).copy()
    change(index)
    path.write_bytes(index.tobytes())
    assert problems(made.path)
    assert not any("sha256" in problem for problem in problems(made.path))
    with pytest.raises(DamageError, match=SECOND):
        ShardSet.open(made.path).sample(5)
    assert rebuild_indexes(made.path) == ["news-000001.idx"]
    assert verify_set(made.path).ok
    assert read_all(made.path) == ROWS
    assert rebuild_indexes(made.path) == []


def test_an_index_with_absurd_numbers_is_damage(made):
    path = made.path / "news-000001.idx"
    for offset, length in ((0, 10), (2**63, 10), (512, 2**32 - 1), (10**12, 10)):
        index = np.frombuffer(path.read_bytes(), INDEX_DTYPE).copy()
        index[0] = (offset, length, 0)
        path.write_bytes(index.tobytes())
        with pytest.raises(DamageError, match=SECOND):
            ShardSet.open(made.path).sample(4)
        assert problems(made.path)


def test_no_index_is_made_from_a_damaged_tar(made):
    damage(made.path / SECOND, flip(700))
    before = (made.path / "news-000001.idx").read_bytes()
    with pytest.raises(DamageError, match="is not the shard of the manifest"):
        rebuild_indexes(made.path)
    assert (made.path / "news-000001.idx").read_bytes() == before


def test_a_manifest_of_another_build(tmp_path, made):
    data = read_json(made.path / "manifest.json")
    data["shards"] = data["shards"][:2]
    write_json_atomic(made.path / "manifest.json", data)
    with pytest.raises(DamageError, match="fingerprint does not fit"):
        verify_set(made.path)
    (made.path / "manifest.json").write_bytes(b"\x00" * 100)
    with pytest.raises(DamageError, match="does not hold JSON"):
        ShardSet.open(made.path)
    (made.path / "manifest.json").unlink()
    with pytest.raises(DataError, match="not a shard set"):
        verify_set(made.path)


def test_a_member_that_points_elsewhere_is_never_followed(tmp_path, made):
    outside = tmp_path / "secret.json"
    outside.write_text('{"id": "secret"}')
    with tarfile.open(made.path / SECOND, "w") as tar:
        link = tarfile.TarInfo("000000004.json")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
    content = (made.path / SECOND).read_bytes()
    (made.path / SECOND).write_bytes(content.ljust(made.shards[1].bytes, b"\0"))
    with pytest.raises(DamageError, match=SECOND):
        ShardSet.open(made.path).sample(4)
    assert any("expected member 000000004.json" in problem for problem in problems(made.path))


def test_any_single_flipped_bit_is_found(made):
    """Bits drawn at random over all shards: verify always sees it, and reading never lies."""
    rng = np.random.default_rng(7)
    for _ in range(60):
        shard = int(rng.integers(3))
        for suffix in (".tar", ".idx"):
            path = made.path / f"news-00000{shard}{suffix}"
            at, bit = int(rng.integers(path.stat().st_size)), 1 << int(rng.integers(8))
            damage(path, flip(at, bit))
            assert not verify_set(made.path).ok
            opened = ShardSet.open(made.path)
            for row in opened.rows_of(shard):
                try:
                    sample = opened.sample(row)
                except DamageError as error:
                    assert f"news-00000{shard}" in str(error)
                else:
                    assert sample == ROWS[row]
            damage(path, flip(at, bit))
    assert verify_set(made.path).ok
