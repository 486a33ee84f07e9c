"""Readers written from shards/README.md alone: nothing of the package is used to read.

They stand for a reader in another language, so they have only a JSON parser, hashes and files.
"""

import hashlib
import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import articles
from helpers.foreign_tars import json_tars, text_tars
from helpers.sets import make_articles, make_impressions, make_tokens

from shards.foreign import index_tars
from shards.order import EpochOrder, keyed_permutation
from shards.tokens import TokenColumn
from shards.writer import ShardWriter


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def read_set(folder):
    """Yield every sample of a set in the order of its rows."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    version, layout = manifest["format_version"], manifest.get("layout")
    named = {name: manifest[name] for name in ("format_version", "kind", "articles_fingerprint")}
    if version == 2:
        named["layout"] = layout
    names = ["samples", "sha256"] + (["index_sha256"] if version == 2 else [])
    named["shards"] = [[shard[name] for name in names] for shard in manifest["shards"]]
    assert hashlib.sha256(canonical(named)).hexdigest() == manifest["fingerprint"]
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    assert hashlib.sha256(canonical(rest)).hexdigest() == manifest["checksum"]
    row = 0
    for shard in manifest["shards"]:
        assert "/" not in shard["name"] and shard["name"].endswith(".tar")
        tar = (folder / shard["name"]).read_bytes()
        assert len(tar) == shard["bytes"] and hashlib.sha256(tar).hexdigest() == shard["sha256"]
        index = (folder / shard["name"].replace(".tar", ".idx")).read_bytes()
        read = read_own if version == 1 else read_foreign
        yield from read(tar, index, row, shard, layout)
        row += shard["samples"]


def read_own(tar, index, row, shard, layout):
    assert len(index) == 16 * shard["samples"]
    for offset, length, crc32 in struct.iter_unpack("<QII", index):
        data = tar[offset : offset + length]
        assert tar[offset - 512 : offset].startswith(b"%09d.json\0" % row)
        assert zlib.crc32(data) == crc32
        yield json.loads(data)
        row += 1


def read_foreign(tar, index, row, shard, layout):
    assert hashlib.sha256(index).hexdigest() == shard["index_sha256"]
    magic, members, _, samples = struct.unpack_from("<8sIIQ", index)
    assert magic == b"TNRIDX2\n" and samples == shard["samples"]
    assert members == len(layout["members"])
    records = list(struct.iter_unpack("<QII", index[24 : 24 + 16 * samples * members]))
    ends = struct.unpack_from(f"<{samples}I", index, 24 + 16 * samples * members)
    keys = index[24 + (16 * members + 4) * samples :]
    for n in range(samples):
        found = {"id": keys[(ends[n - 1] if n else 0) : ends[n]].decode()}
        for member, record in zip(
            layout["members"], records[n * members : (n + 1) * members], strict=True
        ):
            offset, length, crc32 = record
            data = tar[offset : offset + length]
            assert zlib.crc32(data) == crc32
            if offset and member["field"] == "json":
                found |= json.loads(data)
            elif offset:
                found[member["field"]] = data.decode().strip()
        found["body"] = found.get("body") or found.get("abstract") or ""
        yield found


def test_a_set_of_our_own(tmp_path):
    with ShardWriter(tmp_path / "set", "articles", samples_per_shard=4) as writer:
        for article in articles(11):
            writer.add(article)
        made = writer.finish()
    assert list(read_set(made.path)) == articles(11) == list(made)
    log = make_impressions(tmp_path / "log", made, n=9, samples_per_shard=4)
    assert list(read_set(log.path)) == list(log)


@pytest.mark.parametrize("write", [json_tars, text_tars])
def test_tars_made_elsewhere(tmp_path, write):
    write(tmp_path / "tars", articles(11))
    made = index_tars([tmp_path / "tars"], tmp_path / "set")
    assert list(read_set(made.path)) == list(made)


def test_a_token_column(tmp_path):
    made = make_articles(tmp_path / "set", 20, samples_per_shard=8)
    tokens = make_tokens(made, tmp_path / "tokenizer")
    (folder,) = (tmp_path / "set" / "columns").iterdir()
    column = json.loads((folder / "column.json").read_bytes())
    described = {"name": column["name"], "made_from": column["made_from"]}
    digest = hashlib.sha256(canonical(described)).hexdigest()
    assert column["fingerprint"] == digest and folder.name == f"tokens-{digest[:12]}"
    assert column["made_from"]["shard_set"] == made.fingerprint
    for line in (folder / "tokenizer.sha256").read_text().splitlines():
        sha256, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    titles = []
    for shard in json.loads((tmp_path / "set" / "manifest.json").read_bytes())["shards"]:
        values, offsets = read_cell(folder, digest, shard)
        titles += [values[a:b] for a, b in itertools.pairwise(offsets)]
    ids, mask = TokenColumn(tokens.reader).batch("title", np.arange(20), 12)
    first, last = len(tokens.prefix_ids), len(tokens.suffix_ids)
    for row, title in enumerate(titles):
        width = int(mask[row].sum())
        assert ids[row, first : width - last].tolist() == list(title)


def read_cell(folder: Path, column: str, shard: dict) -> tuple[tuple, tuple]:
    """The titles of one cell: (values, offsets)."""
    stem = shard["name"].removesuffix(".tar")
    record = json.loads((folder / f"{stem}.json").read_bytes())
    assert (record["column"], record["shard"], record["rows"]) == (
        column, shard["name"], shard["samples"]
    )  # fmt: skip
    assert record["shard_sha256"] == shard["sha256"]
    data = (folder / f"{stem}.safetensors").read_bytes()
    assert len(data) == record["bytes"] and hashlib.sha256(data).hexdigest() == record["sha256"]
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    content = hashlib.sha256()
    kinds = {"U16": ("<u2", "H"), "I64": ("<i8", "q")}
    tensors = {}
    for name in sorted(set(header) - {"__metadata__"}):
        begin, end = (8 + length + at for at in header[name]["data_offsets"])
        kind = kinds[header[name]["dtype"]]
        content.update(json.dumps([name, kind[0], header[name]["shape"]]).encode())
        content.update(data[begin:end])
        assert zlib.crc32(data[begin:end]) == record["crc32"][name]
        (count,) = header[name]["shape"]
        tensors[name] = struct.unpack(f"<{count}{kind[1]}", data[begin:end])
    assert content.hexdigest() == record["digest"]
    bound = {name: record[name] for name in ("column", "shard", "shard_sha256", "rows", "digest")}
    bound["tensors"] = {
        name: [kinds[header[name]["dtype"]][0], header[name]["shape"], record["crc32"][name]]
        for name in tensors
    }
    assert hashlib.sha256(canonical(bound)).hexdigest() == record["content"]
    assert record["content"] == header["__metadata__"]["content"]
    return tensors["title.values"], tensors["title.offsets"]


M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def seed_sequence(words):
    """The 64-bit key that NumPy's SeedSequence makes of eight words."""
    constant = [0x43B0D7E5]

    def hashed(value):
        value ^= constant[0]
        constant[0] = constant[0] * 0x931E8875 & M32
        value = value * constant[0] & M32
        return value ^ value >> 16

    def mix(x, y):
        z = (0xCA01F9DD * x - 0x4973F715 * y) & M32
        return z ^ z >> 16

    pool = [hashed(word) for word in words[:4]]
    for i in range(4):
        for j in range(4):
            if i != j:
                pool[j] = mix(pool[j], hashed(pool[i]))
    for word in words[4:]:
        for j in range(4):
            pool[j] = mix(pool[j], hashed(word))
    out, d = [], 0x8B51F9DD
    for value in pool:
        value ^= d
        d = d * 0x58F38DED & M32
        value = value * d & M32
        out.append(value ^ value >> 16)
    return out[0] | out[1] << 32, out[2] | out[3] << 32


def perm(key, n):
    words = struct.unpack("<8I", hashlib.sha256(json.dumps(key).encode()).digest())
    start = seed_sequence(words)
    draws = []
    for block in range(1, n // 4 + 2):
        (k0, k1), x = start, (block, 0, 0, 0)
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = (b >> 64 ^ x[1] ^ k0, b & M64, a >> 64 ^ x[3] ^ k1, a & M64)
            k0, k1 = k0 + 0x9E3779B97F4A7C15 & M64, k1 + 0xBB67AE8584CAA73B & M64
        draws += x
    return sorted(range(n), key=lambda place: (draws[place], place))


def epoch(counts, fingerprint, seed, number, window_shards, skipped=()):
    if skipped:
        rows = struct.pack(f"<{len(skipped)}q", *sorted(skipped))
        fingerprint = hashlib.sha256(f"{fingerprint} without ".encode() + rows).hexdigest()
    starts = [sum(counts[:s]) for s in range(len(counts))]
    shards = perm(["shards", fingerprint, seed, number], len(counts))
    out = []
    for window, first in enumerate(range(0, len(shards), window_shards)):
        units = [
            unit
            for s in shards[first : first + window_shards]
            for unit in range(starts[s], starts[s] + counts[s])
            if unit not in skipped
        ]
        order = perm(["units", fingerprint, seed, number, window], len(units))
        out += [units[place] for place in order]
    return out


def test_the_permutation():
    for n in (1, 3, 4, 5, 100):
        assert (
            perm(["shards", "ü", 7, n], n) == keyed_permutation(["shards", "ü", 7, n], n).tolist()
        )


@pytest.mark.parametrize("skipped", [(), (0, 9, 17)])
def test_the_order_of_an_epoch(skipped):
    counts = [5, 0, 7, 7, 1, 6]
    order = EpochOrder(counts, "ab" * 32, 3, 4, np.array(skipped, dtype=np.int64))
    for number in range(3):
        expected = epoch(counts, "ab" * 32, 3, number, 4, skipped)
        assert order.rows(number, 0, order.num_units).tolist() == expected
