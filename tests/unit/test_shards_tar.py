"""The walk through tars: the members that tarfile sees, and damage that tarfile does not see."""

import hashlib
import io
import os
import tarfile

import pytest
from helpers.foreign_tars import write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DamageError
from shards.tar import TarWalk

FORMATS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
names = st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=150)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


def walk(path, read=True):
    digest = hashlib.sha256()
    with TarWalk(path, digest) as tar:
        found = [(m.name, m.data_at, m.size, m.is_file, tar.data() if read else None) for m in tar]
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(paths, st.one_of(st.none(), st.binary(max_size=1500))), max_size=6),
    st.sampled_from(FORMATS),
    st.sampled_from([0, 12.5]),
    st.booleans(),
)
def test_it_sees_what_tarfile_sees(tmp_path_factory, members, format, mtime, read):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, members, format=format, mtime=mtime if format == tarfile.PAX_FORMAT else 0)
    with tarfile.open(path) as tar:
        expected = [
            (m.name, m.offset_data, m.size, m.isfile(), file.read() if file else b"")
            for m in tar
            for file in [tar.extractfile(m) if m.isfile() else None]
        ]
    found = [(n.decode().rstrip("/"), *rest) for n, *rest in walk(path, read)]
    assert [entry[:4] for entry in found] == [(n.rstrip("/"), *rest[:3]) for n, *rest in expected]
    if read:
        assert [entry[4] for entry in found] == [entry[4] for entry in expected]


@pytest.mark.parametrize("format", FORMATS)
def test_any_flipped_bit_of_a_header_is_found(tmp_path, format):
    path = write_tar(tmp_path / "a.tar", [("a.json", b"{}"), ("b" * 120, b"{}")], format=format)
    intact = path.read_bytes()
    headers = [at for at in range(0, len(intact), 512) if intact[at + 257 : at + 262] == b"ustar"]
    assert len(headers) == 3
    for start in headers:
        for at in range(start, start + 512, 7):
            data = bytearray(intact)
            data[at] ^= 1 << at % 8
            path.write_bytes(data)
            with pytest.raises(DamageError, match=rf"a\.tar, offset {start}: "):
                walk(path)


def test_every_cut_is_found(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.json", b"x" * 700), ("b.json", b"y")])
    intact = path.read_bytes()
    end = 5 * 512  # two headers, three blocks of data; behind it, zeros
    for cut in [*range(0, end + 1024, 97), end - 1, end, end + 511, end + 512]:
        path.write_bytes(intact[:cut])
        for read in (True, False):
            with pytest.raises(DamageError, match="offset"):
                walk(path, read)
    path.write_bytes(intact[: end + 1024])
    assert len(walk(path)) == 2


def other_type(kind, name="a.json", extra=b""):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(extra)
    return member.tobuf(tarfile.GNU_FORMAT) + extra + bytes(-len(extra) % 512)


def pax(text):
    return other_type(b"x", "PaxHeader", text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (other_type(b"S"), "a member of unsupported type b'S'"),
        (pax(b"22 GNU.sparse.major=1\n") + other_type(b"0"), "an unsupported sparse member"),
        (pax(b"12 size=two\n") + other_type(b"0"), "whose size is not a number"),
        (pax(b"99 path=x\n") + other_type(b"0"), "an unreadable extended header"),
        (pax(b"nonsense") + other_type(b"0"), "an unreadable extended header"),
        (pax(b"9" * 5000 + b" path=x\n") + other_type(b"0"), "an unreadable extended header"),
        (pax(b"5019 size=" + b"9" * 5008 + b"\n") + other_type(b"0"), "whose size is not a number"),
        (other_type(b"L", extra=b"x" * (2 << 20)), "of 2097152 bytes"),
        (other_type(b"0", extra=b"")[:124] + b"x" * 388, "checksum"),
        (b"no tar at all", "ends here in a header"),
    ],
)
def test_what_is_no_tar_that_can_be_read(tmp_path, data, message):
    (tmp_path / "a.tar").write_bytes(data + bytes(1024) * (len(data) > 100))
    with pytest.raises(DamageError, match=message):
        walk(tmp_path / "a.tar")


def test_large_sizes_in_base_256_and_in_extended_headers(tmp_path):
    """As GNU tar and PAX write sizes from 8 GiB; here of small members."""
    header = bytearray(other_type(b"0"))
    header[124:136] = b"\x80" + (3).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    block = bytes(header) + b"abc" + bytes(509)
    extended = pax(b"10 size=3\n") + other_type(b"0", "b.json") + b"def" + bytes(509)
    (tmp_path / "a.tar").write_bytes(block + extended + bytes(1024))
    found = walk(tmp_path / "a.tar")
    assert [(name, size, data) for name, _, size, _, data in found] == [
        (b"a.json", 3, b"abc"), (b"b.json", 3, b"def")
    ]  # fmt: skip


def test_a_missing_file(tmp_path):
    with pytest.raises(DamageError, match="cannot read"):
        TarWalk(tmp_path / "none.tar", hashlib.sha256())


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DamageError, match="not a regular file"):
        TarWalk(tmp_path / "a.tar", hashlib.sha256())


@pytest.mark.timeout(20)
def test_an_extended_header_of_many_small_records_is_read_in_one_pass(tmp_path):
    """A hundred thousand of them took minutes while the rest was copied for each."""
    extended = pax(b"8 a=bcd\n" * (1 << 17)) + other_type(b"0", "b.json")
    (tmp_path / "a.tar").write_bytes(extended + bytes(1024))
    assert [name for name, *_ in walk(tmp_path / "a.tar")] == [b"b.json"]


def test_two_tars_one_behind_the_other(tmp_path):
    """`cat a.tar b.tar` is no tar: every reader would lose the second."""
    first = write_tar(tmp_path / "a.tar", [("a.json", b"{}")]).read_bytes()
    (tmp_path / "c.tar").write_bytes(first + first)
    with pytest.raises(DamageError, match="other bytes after them"):
        walk(tmp_path / "c.tar")
    with tarfile.open(fileobj=io.BytesIO(first + first)) as tar:
        assert len(tar.getmembers()) == 1
