"""Damage met while samples are streamed: found, named, and skipped only where that is allowed.

Every fault is tried on a set of our own and on tars made elsewhere (one JSON member a sample, and
title and body as members of their own). The second of three shards is damaged. Then `verify` names
it, reading never gives anything but what was written, tokenizing stops, or skips exactly the
damaged samples within its budget, and training leaves those out.
"""

import json
import shutil

import numpy as np
import pytest
from helpers.corpora import articles
from helpers.foreign_tars import json_tars, text_tars, write_tar
from helpers.sets import make_articles, make_impressions

from shards.build import build_impressions
from shards.clicks import ClickColumn
from shards.damage import SampleDamage, SkipBudget
from shards.errors import DamageError, DataError, UsageError
from shards.foreign import index_tars
from shards.negatives import draw_negatives
from shards.order import EpochOrder
from shards.reader import ShardSet
from shards.stats import compute_stats
from shards.stream import Stream
from shards.tokenize import tokenize_set
from shards.tokenizer import train_tokenizer
from shards.tokens import TokenColumn
from shards.verify import verify_set
from shards.writer import ShardWriter

ROWS = articles(12)
SHARD_ROWS = [4, 5, 6, 7]


def own(folder):
    with ShardWriter(folder, "articles", samples_per_shard=4) as writer:
        for row in ROWS:
            writer.add(row)
        return writer.finish()


def foreign_json(folder):
    json_tars(folder, ROWS)
    return index_tars([folder])


def foreign_text(folder):
    text_tars(folder, ROWS)
    return index_tars([folder])


KINDS = {"own": own, "json": foreign_json, "text": foreign_text}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(own(folder / "set"), folder / "tokenizer", 90)
    return folder / "tokenizer"


@pytest.fixture(params=KINDS)
def made(tmp_path, request):
    return KINDS[request.param](tmp_path / "set")


def places(shard_set, row):
    """(offset, length) of every member of a row."""
    shard, place = shard_set.locate(row)
    return [(r[0], r[1]) for r in np.atleast_1d(shard_set.index(shard)[place]).tolist()]


def at(position):
    """Cut the second shard at a position within its third sample (row 6)."""

    def damage(path, shard_set):
        offset, length = places(shard_set, 6)[0]
        end = {
            "header boundary": offset - 512,
            "in a header": offset - 512 + 100,
            "in data": offset + length // 2,
            "in padding": offset + length + 1,
        }[position]
        path.write_bytes(path.read_bytes()[:end])

    return damage


def between_members(path, shard_set):
    offset, length = places(shard_set, 6)[0]
    path.write_bytes(path.read_bytes()[: offset + -(-length // 512) * 512])


def no_end_blocks(path, shard_set):
    data = path.read_bytes()
    last = max(offset + -(-length // 512) * 512 for offset, length in places(shard_set, 7))
    path.write_bytes(data[:last])


def flip(where):
    def damage(path, shard_set):
        offset, length = places(shard_set, 6)[0]
        data = bytearray(path.read_bytes())
        data[{"data": offset + length // 2, "header": offset - 512 + 148}[where]] ^= 1
        path.write_bytes(data)

    return damage


def zeros(where):
    def damage(path, shard_set):
        offset, _ = places(shard_set, 6)[0]
        start = {"data": offset, "header": offset - 512}[where]
        data = bytearray(path.read_bytes())
        data[start : start + 512] = bytes(512)
        path.write_bytes(data)

    return damage


def missing(path, shard_set):
    path.unlink()


def swapped(path, shard_set):
    other = shard_set.path / shard_set.shards[2].name
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def replaced(path, shard_set):
    path.write_bytes(np.random.default_rng(0).bytes(shard_set.shards[1].bytes))


# What is done to the second shard, and the rows that can then no longer be read.
FAULTS = {
    "D1 cut at a header boundary": (at("header boundary"), {6, 7}),
    "D1 cut between members": (between_members, {"own": {7}, "json": {7}, "text": {6, 7}}),
    "D1 cut in a header": (at("in a header"), {6, 7}),
    "D1 cut in data": (at("in data"), {6, 7}),
    "D1 cut in padding": (at("in padding"), {"own": {7}, "json": {7}, "text": {6, 7}}),
    "D1 missing end blocks": (no_end_blocks, set()),
    "D2 bit flip in data": (flip("data"), {6}),
    "D2 bit flip in a header": (flip("header"), set()),
    "D2 zeros over a header": (zeros("header"), {"own": {6}, "json": set(), "text": set()}),
    "D2 zeros over data": (zeros("data"), {6}),
    "D3 missing": (missing, {4, 5, 6, 7}),
    "D3 swapped": (swapped, {4, 5, 6, 7, 8, 9, 10, 11}),
    "D3 replaced by another of its size": (replaced, {4, 5, 6, 7}),
}


@pytest.fixture(params=FAULTS)
def damaged(made, request):
    """(path, name of the damaged shard, rows lost, what every row was)."""
    kind = "own" if made.manifest.layout is None else "text"
    if made.manifest.layout is not None and made.manifest.layout.members[0].field == "json":
        kind = "json"
    damage, lost = FAULTS[request.param]
    lost = lost[kind] if isinstance(lost, dict) else lost
    before = list(made)
    made.close()
    name = made.shards[1].name
    damage(made.path / name, made)
    return made.path, name, lost, before


def test_at_rest_and_while_reading(damaged):
    path, name, lost, before = damaged
    found = [str(problem) for problem in verify_set(path).problems]
    assert any(problem.startswith(name) for problem in found)
    opened = ShardSet.open(path, check_files=False)
    for row in range(12):
        if row not in lost:
            assert opened.sample(row) == before[row]
            continue
        with pytest.raises(SampleDamage, match=r"offset \d+ \(row \d+\)") as caught:
            opened.sample(row)
        assert caught.value.skip.row == row
        assert caught.value.skip.offset in [offset for offset, _ in places(opened, row)]
        assert caught.value.skip.shard == opened.shards[row // 4].name
    if lost:
        with pytest.raises(DamageError):
            list(opened)
        with pytest.raises(DamageError):
            compute_stats(opened)


def test_while_tokenizing(damaged, tokenizer, capsys):
    path, _, lost, _ = damaged
    opened = ShardSet.open(path, check_files=False)
    if not lost:
        assert len(TokenColumn(tokenize_set(opened, tokenizer)).skipped_rows) == 0
        return
    with pytest.raises(DamageError, match=r"offset \d+ \(row \d+\)"):
        tokenize_set(opened, tokenizer)
    with pytest.raises(DamageError, match=rf"more than --skip-damaged {len(lost) - 1}|offset"):
        tokenize_set(opened, tokenizer, skip_damaged=len(lost) - 1)
    capsys.readouterr()
    reader = tokenize_set(opened, tokenizer, skip_damaged=len(lost))
    said = capsys.readouterr().err
    tokens = TokenColumn(reader)
    assert set(tokens.skipped_rows.tolist()) == lost
    report = [json.loads(line) for line in (reader.folder / "skipped.jsonl").open()]
    assert [entry["row"] for entry in report] == sorted(lost)
    for entry in report:
        assert f"{entry['shard']}, offset {entry['offset']} (row {entry['row']}): " in said
        assert entry["offset"] in [offset for offset, _ in places(opened, entry["row"])]
    lengths = tokens.lengths("title", np.arange(12), 32) - tokens.num_special
    assert (lengths == 0).tolist() == [row in lost for row in range(12)]
    # The skips of a former run count again: nothing is ever forgotten.
    with pytest.raises(DamageError):
        tokenize_set(opened, tokenizer)


def test_while_building_clicks_over_it(damaged, tmp_path):
    path, _, lost, _ = damaged
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0\n")
    opened = ShardSet.open(path, check_files=False)
    if lost:
        with pytest.raises(DamageError):
            build_impressions([tmp_path / "behaviors.tsv"], opened, tmp_path / "log")
        assert not (tmp_path / "log").exists()


def test_d3_an_extra_and_a_renamed_shard(made):
    name = made.shards[1].name
    shutil.copy(made.path / name, made.path / "extra-000009.tar")
    found = [str(problem) for problem in verify_set(made.path).problems]
    assert found == ["extra-000009.tar: is not in the manifest"]
    (made.path / name).rename(made.path / "extra-000009.tar")
    found = [str(problem) for problem in verify_set(made.path).problems]
    assert any(problem.startswith(f"{name}: cannot be read") for problem in found)


def test_d3_a_stale_index(made):
    shutil.copy(made.path / made.shards[0].index_name, made.path / made.shards[1].index_name)
    assert any(made.shards[1].stem in str(problem) for problem in verify_set(made.path).problems)
    with pytest.raises(DamageError, match=made.shards[1].stem):
        ShardSet.open(made.path, check_files=False).sample(5)


def test_d3_a_shard_cut_while_the_set_is_open(made):
    """No map that dies of it: an error, and the samples in front of the cut are read."""
    assert made.sample(7)
    before = made.sample(4)
    at("in data")(made.path / made.shards[1].name, made)
    assert made.sample(4) == before
    with pytest.raises(DamageError, match="it ends before"):
        made.sample(6)


@pytest.mark.parametrize("processes", [1, 2])
def test_skips_of_several_processes_share_one_budget(made, tokenizer, processes, capfd):
    for shard, row in ((0, 1), (2, 9)):
        path = made.path / made.shards[shard].name
        data = bytearray(path.read_bytes())
        data[places(made, row)[0][0]] ^= 1
        path.write_bytes(data)
    with pytest.raises(DamageError, match="2 damaged samples, more than --skip-damaged 1 allows"):
        tokenize_set(made, tokenizer, processes=processes, skip_damaged=1)
    capfd.readouterr()
    reader = tokenize_set(made, tokenizer, processes=processes, skip_damaged=2)
    assert capfd.readouterr().err.count("skipped damaged sample") == 2
    assert TokenColumn(reader).skipped_rows.tolist() == [1, 9]


def test_damage_ends_the_work_of_several_processes_soon(tmp_path, tokenizer):
    articles = make_articles(tmp_path / "many", 20, 1)
    path = articles.path / articles.shards[0].name
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(DamageError, match="row 0"):
        tokenize_set(articles, tokenizer, processes=2)
    left = len(list(articles.columns_dir.glob("tokens-*/*.safetensors")))
    assert left < 10, "what had not begun was left out"


def test_a_mended_shard_mends_the_tokens(made, tokenizer):
    path = made.path / made.shards[1].name
    intact = path.read_bytes()
    flip("data")(path, made)
    reader = tokenize_set(made, tokenizer, skip_damaged=1)
    assert TokenColumn(reader).skipped_rows.tolist() == [6]
    path.write_bytes(intact)
    reader = tokenize_set(made, tokenizer)
    assert TokenColumn(reader).skipped_rows.tolist() == []
    assert not (reader.folder / "skipped.jsonl").exists()
    fresh = tokenize_set(own(made.path.parent / "fresh"), tokenizer)
    rows = np.arange(12)
    again, first = TokenColumn(reader).batch("title", rows, 32), TokenColumn(fresh)
    assert (again[0] == first.batch("title", rows, 32)[0]).all()


def test_skipped_rows_neither_come_nor_are_drawn(made, tokenizer):
    flip("data")(made.path / made.shards[1].name, made)
    skipped = TokenColumn(tokenize_set(made, tokenizer, skip_damaged=1)).skipped_rows
    counts = np.diff(made.shard_starts).tolist()
    order = EpochOrder(counts, made.fingerprint, 0, 2, skipped)
    assert order.num_units == 11
    for epoch in range(3):
        assert sorted(order.rows(epoch, 0, 11)) == [row for row in range(12) if row != 6]
    whole = EpochOrder(counts, made.fingerprint, 0, 2)
    with pytest.raises(DataError, match="fingerprint"):
        whole.total_at(order.position_at(3))
    assert EpochOrder(counts, made.fingerprint, 0, 2, skipped[:0]).fingerprint == whole.fingerprint
    rows = np.array([row for row in range(12) if row != 6])
    drawn = draw_negatives(0, rows, np.zeros(11), 12, 10, skipped=skipped)
    for row, negatives in zip(rows, drawn, strict=True):
        assert sorted([row, *negatives]) == rows.tolist()
    with pytest.raises(DataError, match="the set has 11"):
        draw_negatives(0, rows, np.zeros(11), 12, 11, skipped=skipped)


def test_clicks_on_skipped_articles_are_left_out(tmp_path):
    made = own(tmp_path / "news")
    shown = [([1], [2, 3], [1, 0]), ([6], [2, 3], [1, 0]), ([1], [2, 6], [1, 0])]
    shown.append(([], [2, 5, 8, 9], [1, 1, 0, 0]))
    samples = [
        {"id": str(n), "user": "a", "time": "", "history": h, "candidates": c, "clicks": clicks}
        for n, (h, c, clicks) in enumerate(shown)
    ]
    clicks = ClickColumn.open(
        make_impressions(tmp_path / "log", made, samples=samples, samples_per_shard=2)
    )
    assert clicks.num_clicks == 5
    assert clicks.units_with(np.array([6])).tolist() == [1, 2]
    assert clicks.units_with(np.array([6, 9])).tolist() == [1, 2, 3, 4]
    assert clicks.units_with(np.empty(0, np.int64)).tolist() == []


def test_a_budget_is_not_negative():
    with pytest.raises(UsageError, match="--skip-damaged is -1"):
        SkipBudget(-1)


def test_d5_one_sample_and_none(tmp_path, tokenizer):
    write_tar(tmp_path / "one" / "a.tar", [("k.json", json.dumps(ROWS[0]).encode())])
    made = index_tars([tmp_path / "one"])
    assert list(made) == [ROWS[0]]
    order = EpochOrder([1], made.fingerprint, 0)
    ranks = [Stream(order, 4, rank, 4) for rank in range(4)]
    assert [next(rank).rows.tolist() for rank in ranks] == [[0]] * 4
    write_tar(tmp_path / "none" / "a.tar", [])
    with pytest.raises(DataError, match="no samples"):
        index_tars([tmp_path / "none"])


def test_d5_a_shard_without_samples_among_others(tmp_path, tokenizer):
    json_tars(tmp_path, ROWS[:4], per_tar=2)
    write_tar(tmp_path / "shard_0000b.tar", [("x.jpg", b"1")])
    made = index_tars([tmp_path])
    assert [shard.samples for shard in made.shards] == [2, 0, 2]
    assert list(made) == ROWS[:4]
    assert verify_set(tmp_path).ok
    tokens = TokenColumn(tokenize_set(made, tokenizer))
    assert tokens.batch("title", np.arange(4), 32)[0].shape[0] == 4
    order = EpochOrder(np.diff(made.shard_starts).tolist(), made.fingerprint, 0, 1)
    # Fewer shards than ranks: every rank gets its share all the same.
    rows = [next(Stream(order, 4, rank, 4)).rows.tolist() for rank in range(4)]
    assert sorted(row for share in rows for row in share) == [0, 1, 2, 3]


INDEXING = {
    "cut at a header boundary": "without the two zero blocks",
    "cut in a header": "in a header",
    "cut in data": "in the data",
    "cut in padding": "in the padding",
    "second end block missing": "the second zero block",
    "flip in a header": "the checksum of the header does not fit",
    "zeros over a header": "zeros instead of a header",
}


@pytest.mark.parametrize("fault", INDEXING)
def test_no_index_is_made_of_a_damaged_tar(tmp_path, fault):
    """Where Python's tarfile, and webdataset with it, would lose the rest without a word."""
    tars = json_tars(tmp_path, ROWS)
    made = index_tars([tmp_path])
    offset, length = places(made, 6)[0]
    data = bytearray(tars[1].read_bytes())
    end = max(o + -(-n // 512) * 512 for o, n in places(made, 7))
    cuts = {
        "cut at a header boundary": (offset - 512, offset - 512),
        "cut in a header": (offset - 300, offset - 512),
        "cut in data": (offset + 20, offset),
        "cut in padding": (offset + length + 1, offset),
        "second end block missing": (end + 512, end),
    }
    if fault in cuts:
        cut, named = cuts[fault]
        del data[cut:]
    elif fault == "flip in a header":
        named = offset - 512
        data[named + 10] ^= 1
    else:
        named = offset - 512
        data[named : named + 512] = bytes(512)
    tars[1].write_bytes(data)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DamageError, match=rf"shard_0001\.tar, offset {named}: .*{INDEXING[fault]}"):
        index_tars([tmp_path])
    assert not (tmp_path / "manifest.json").exists()


def test_a_run_says_and_records_how_many_samples_are_left_out(tmp_path):
    from helpers.inprocess import train
    from helpers.toy import ToyData

    from trainer.tasks.left_out import damaged

    class Watched(ToyData):
        seen: set[int] = set()  # noqa: RUF012

        def collate(self, batch_rows):
            self.seen.update(batch_rows.rows.tolist())
            return super().collate(batch_rows)

    data = Watched(seed=3)
    data.order = EpochOrder(data.order.counts.tolist(), "toy", 3, skipped=np.array([5, 77]))
    data.notes = tuple(damaged(data.order.skipped).notes)
    run = train(tmp_path / "run", data=data, run__max_steps=19)
    assert data.seen == set(range(150)) - {5, 77}
    assert json.loads((run / "starts.jsonl").read_text())["left_out"] == 2
    log = (run / "log" / "train.log").read_text()
    assert "2 samples are left out: they, or articles they name, were damaged" in log


def test_post_training_leaves_skipped_articles_out(made, tokenizer):
    from trainer.tasks.post_train.pairs import PostTrainData
    from trainer.tasks.post_train.task import PostTrainConfig, PostTrainDataConfig
    from trainer.tasks.sources import Sources

    flip("data")(made.path / made.shards[1].name, made)
    tokens = TokenColumn(tokenize_set(made, tokenizer, skip_damaged=1))
    config = PostTrainConfig(data=PostTrainDataConfig(articles=str(made.path), num_negatives=9))
    data = PostTrainData(config, Sources(made, tokens))
    stream = Stream(data.order, 11)
    for _ in range(3):
        batch = next(stream)
        assert 6 not in batch.rows
        (titles,) = data.collate(batch).batch.titles.parts
        # Every title of the batch has tokens: none is the empty one of the damaged article.
        assert (titles.mask.sum(dim=1) > tokens.num_special).all()
        assert len(titles.mask) == 11
