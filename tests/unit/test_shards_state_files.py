"""What builds write for themselves and read back: of another form it is named or made again."""

import json
import struct

import pytest
from helpers.corpora import articles, write_json_lines

from shards.assemble import Piece, ShardTask, write_shard
from shards.build import build_articles, build_impressions
from shards.duplicates import describe_duplicates, read_duplicates
from shards.errors import DamageError, DataError, UsageError
from shards.files import read_json, write_json_atomic
from shards.manifest import MANIFEST_NAME
from shards.reader import ShardSet
from shards.spool import Spool, SpoolWriter
from shards.world.settings import WorldSettings
from shards.world.synthesize import TRUTH, synthesize

FACTS = {"rows": 1, "lines": 1, "refused_first": 0}
BAD_FACTS = [
    b"", b"[]", b"null", b"3", b"{", b'"x"', b"{}", b"\xff", b"[" * 5000,
    {"rows": "1"}, {"rows": None}, {"lines": 1.5}, {"sizes": [1, 2, 3]}, {"sizes": "abcd"},
    {"sizes": [-1, 1, 0, 0]}, {"sizes": [0, 0, 0, 10**30]}, {"seen": 3}, {"keys": [1]},
    {"notes": [[1, 2, 3]]}, {"quoting": [1]},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FACTS, ids=lambda bad: str(bad)[:30])
def test_the_end_of_a_spool(tmp_path, bad):
    path = tmp_path / "a.spool"
    with SpoolWriter(path) as spool:
        spool.add(b"{}", 1, id=bytes(16))
        spool.refuse(2, "bad JSON", "{")
        spool.finish(FACTS)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[-8:])
    good = json.loads(whole[-8 - length : -8])
    assert list(Spool(path).refused()) == [(2, "bad JSON", "{")]
    data = bad if isinstance(bad, bytes) else json.dumps(good | bad).encode()
    path.write_bytes(whole[: -8 - length] + data + struct.pack("<Q", len(data)))
    with pytest.raises(DamageError, match=r"a\.spool"):
        Spool(path)
    path.write_bytes(whole[:-8] + struct.pack("<Q", 2**63))
    with pytest.raises(DamageError, match=r"a\.spool"):
        Spool(path)


@pytest.mark.parametrize("line", [b"[1]\n", b'["1", "a", "b"]\n', b"{}\n", b"x" * 20 + b"\n"])
def test_refused_rows_of_a_spool(tmp_path, line):
    path = tmp_path / "a.spool"
    with SpoolWriter(path) as spool:
        spool.refuse(2, "bad JSON", "{")
        spool._refused = bytearray(line)
        spool.finish(FACTS)
    with pytest.raises(DamageError, match=r"a\.spool"):
        list(Spool(path).refused())


NOTES = [
    b"", b"[]", b"{}", b'{"name": "news-000000.tar"}',
    {"samples": "3"}, {"samples": 2}, {"name": "news-000001.tar"}, {"bytes": None},
]  # fmt: skip


@pytest.mark.parametrize("bad", NOTES, ids=lambda bad: str(bad)[:30])
def test_the_note_of_a_finished_shard(tmp_path, bad):
    import numpy as np

    spool = tmp_path / "a.spool"
    spool.write_bytes(b'{"id":"1"}' * 3)
    piece = Piece(spool, np.arange(0, 30, 10), np.full(3, 10))
    task = ShardTask(tmp_path, "news-000000.tar", 0, (piece,))
    info, _, made = write_shard(task)
    assert not made and write_shard(task)[2]
    note = tmp_path / "news-000000.done"
    good = read_json(note)
    note.write_bytes(bad if isinstance(bad, bytes) else json.dumps(good | bad).encode())
    again, _, made = write_shard(task)
    assert not made and again == info


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", '{"id": "N9"}', '{"id": 9, "row": 0}', '{"id": "N9", "row": "0"}',
     '{"id": "N9", "row": -1}', '{"id": "N9", "row": 99}', "{", "[" * 5000],
)  # fmt: skip
def test_dropped_duplicates(tmp_path, line):
    rows = articles(3)
    rows.append(rows[0] | {"id": "N9"})
    made = build_articles([write_json_lines(tmp_path / "a.jsonl", rows)], tmp_path / "set")
    assert list(read_duplicates(made.shard_set)) == [("N9", 0)]
    (tmp_path / "set" / "duplicates.jsonl").write_text(line + "\n")
    manifest = read_json(tmp_path / "set" / MANIFEST_NAME)
    manifest["source"]["duplicates"] = describe_duplicates(tmp_path / "set")
    write_json_atomic(tmp_path / "set" / MANIFEST_NAME, manifest)
    edited = ShardSet.open(tmp_path / "set")
    with pytest.raises(DamageError, match=r"duplicates\.jsonl"):
        list(read_duplicates(edited))
    (tmp_path / "b.tsv").write_text("1\tU1\t\tN1\tN9-1 N2-0\n")
    with pytest.raises(DamageError, match=r"duplicates\.jsonl"):
        build_impressions([tmp_path / "b.tsv"], edited, tmp_path / "log")


@pytest.mark.parametrize("text", ['{"N1": "0"}', "[]", "{", "3"])
def test_rows_of_articles_in_the_work_of_a_build(tmp_path, text):
    from shards.click_build import read_article_rows

    path = tmp_path / "articles.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"articles\.json"):
        read_article_rows(path)


WORLD = WorldSettings(articles=100, users=5, train_impressions=5, dev_impressions=5)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"fingerprint": 3}', "{", "[" * 5000])
def test_the_truth_of_a_world(tmp_path, text):
    truth = synthesize(WORLD, tmp_path)
    (tmp_path / TRUTH).write_text(text)
    with pytest.raises(UsageError, match="replace them with --force"):
        synthesize(WORLD, tmp_path)
    assert synthesize(WORLD, tmp_path, force=True) == truth


@pytest.mark.parametrize(
    "change",
    [{"files": {"a": "3"}}, {"files": None}, {"settings": []}, {"dev": {}}, {"best_auc": ""}],
)
def test_a_truth_whose_values_were_edited_is_made_again(tmp_path, change):
    truth = synthesize(WORLD, tmp_path)
    assert synthesize(WORLD, tmp_path) == truth
    write_json_atomic(tmp_path / TRUTH, truth | change)
    assert synthesize(WORLD, tmp_path) == truth == read_json(tmp_path / TRUTH)


@pytest.mark.parametrize("value", ["high", None, [], {}])
def test_a_report_over_an_edited_truth(tmp_path, value):
    from trainer.evaluate.metrics import METRIC_NAMES
    from trainer.evaluate.report import read_ceilings

    write_json_atomic(tmp_path / TRUTH, {f"best_{name}": value for name in METRIC_NAMES})
    with pytest.raises(DataError, match="says nothing of a best AUC"):
        read_ceilings(tmp_path / TRUTH)
    (tmp_path / TRUTH).write_text("[1]")
    with pytest.raises(DamageError, match=r"truth\.json is damaged or was edited"):
        read_ceilings(tmp_path / TRUTH)
