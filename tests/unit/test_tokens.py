"""Token columns: the ids stored are those of the whole text, whatever was cut before tokenizing."""

# ruff: noqa: RUF001

import gzip
import json
from itertools import islice

import numpy as np
import pytest
from helpers.sets import WORDS, make_articles, make_clicks, make_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from shards.column_check import verify_columns
from shards.columns import list_columns
from shards.errors import ColumnError, DataError, UsageError
from shards.length_groups import WORTH, length_groups, most_groups
from shards.tokenize import TextEncoder, cuts_at_spaces, safe_cut, tokenize_set
from shards.tokenizer import load_tokenizer, tokenizer_sha256, train_tokenizer
from shards.tokens import TokenColumn
from trainer.cli.main import main

ALPHABET = "abcdeéÉßΣσçñĳﬁ½ñ̃ ̃ \u00a0\u200b\t\n   .,!?'’“”-—…()[]12३日本語한국Привет🙂▁"
texts = st.text(st.sampled_from(ALPHABET), max_size=160) | st.text(max_size=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def articles(folder):
    return make_articles(folder / "articles", 60, 16)


@pytest.fixture(scope="module")
def tokens(articles, folder):
    return make_tokens(articles, folder / "tokenizer", title_tokens=10, body_tokens=30)


def trained(kind):
    """Small tokenizers of the kinds that pre-trained encoders come with."""
    corpus = [" ".join(WORDS[i : i + 9]) for i in range(0, 50, 3)] + list(ALPHABET) * 3
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"])
    elif kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=["[UNK]"], unk_token="[UNK]"
        )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=["wordpiece", "byte-level", "metaspace", "sentencepiece"])
def backend(request, tokens):
    if request.param == "sentencepiece":
        return load_tokenizer(tokens.tokenizer_dir).backend_tokenizer
    return trained(request.param)


@settings(deadline=None, max_examples=150)
@given(lines=st.lists(texts, min_size=1, max_size=4), limit=st.integers(1, 12), data=st.data())
def test_cut_texts_give_the_ids_of_whole_texts(backend, lines, limit, data):
    encoder = TextEncoder(backend.to_str())
    assert encoder.cuts
    whole = [backend.encode(line, add_special_tokens=False).ids for line in lines]
    assert encoder.encode(lines, limit) == [ids[:limit] for ids in whole]
    for line, ids in zip(lines, whole, strict=True):
        cut = safe_cut(line, data.draw(st.integers(0, len(line) + 1)))
        part = backend.encode(cut, add_special_tokens=False).ids
        assert part == ids[: len(part)]


def test_long_texts_are_cut_and_cut_again_where_the_ids_do_not_suffice(backend, monkeypatch):
    long_words = " ".join("x" * 50 for _ in range(400))
    prose = " ".join(WORDS * 20)
    unbroken = "y" * 5000
    encoder = TextEncoder(backend.to_str())
    sizes = []

    class Spy:
        def encode_batch_fast(self, batch, **options):
            sizes.append([len(text) for text in batch])
            return backend.encode_batch_fast(batch, **options)

    monkeypatch.setattr(encoder, "_tokenizer", Spy())
    got = encoder.encode([prose, long_words, unbroken, ""], 40)
    for text, ids in zip([prose, long_words, unbroken, ""], got, strict=True):
        assert ids == backend.encode(text, add_special_tokens=False).ids[:40]
    assert sizes[0][0] <= 240 and sizes[0][2] == 5000


def test_unknown_tokenizers_read_whole_texts():
    tokenizer = trained("byte-level")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("e", "isolated")
    assert not cuts_at_spaces(tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert not cuts_at_spaces(tokenizer.to_str())
    tokenizer = trained("wordpiece")
    assert cuts_at_spaces(tokenizer.to_str())
    tokenizer.normalizer = normalizers.Replace("a b", "c")
    assert not cuts_at_spaces(tokenizer.to_str())
    tokenizer.normalizer = None
    tokenizer.add_tokens(["new york"])
    assert not cuts_at_spaces(tokenizer.to_str())
    encoder = TextEncoder(tokenizer.to_str())
    text = " ".join(WORDS * 10)
    assert encoder.encode([text], 5) == [tokenizer.encode(text, add_special_tokens=False).ids[:5]]


@given(text=texts, chars=st.integers(0, 200))
def test_safe_cut_ends_before_a_plain_space(text, chars):
    cut = safe_cut(text, chars)
    assert text.startswith(cut)
    if cut != text:
        assert 0 < len(cut) <= chars
        assert text[len(cut)] == " " and not cut[-1].isspace()


@pytest.mark.parametrize("field", ["title", "body"])
@pytest.mark.parametrize("pad_to_max", [False, True])
def test_batch_is_what_the_tokenizer_itself_gives(articles, tokens, field, pad_to_max):
    rows = np.array([0, 3, 59, 17, 3, 10])
    length = 8 if field == "title" else 25
    ids, mask = tokens.batch(field, rows, length, pad_to_max)
    tokenizer = load_tokenizer(tokens.tokenizer_dir)
    expected = tokenizer(
        [articles.sample(row)[field] for row in rows.tolist()],
        truncation=True,
        max_length=length,
        padding="max_length" if pad_to_max else "longest",
        return_tensors="np",
    )
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
    assert ids.dtype == mask.dtype == np.int64
    assert tokens.lengths(field, rows, length).tolist() == mask.sum(axis=1).tolist()


def test_empty_bodies_are_their_special_tokens(articles, tokens):
    rows = np.array([3, 10])
    assert [articles.sample(row)["body"] for row in rows.tolist()] == ["", ""]
    ids, mask = tokens.batch("body", rows, 30)
    assert ids.tolist() == [[2, 3], [2, 3]] and mask.tolist() == [[1, 1], [1, 1]]


def test_batch_without_rows(tokens):
    ids, mask = tokens.batch("title", np.empty(0, dtype=np.int64), 10)
    assert ids.shape == mask.shape == (0, 2)


def test_what_the_column_says(tokens):
    tokenizer = load_tokenizer(tokens.tokenizer_dir)
    assert tokens.tokenizer_sha256 == tokenizer_sha256(tokenizer)
    assert (tokens.prefix_ids, tokens.suffix_ids, tokens.pad_id) == ([2], [3], 0)
    assert tokens.limits == {"title": 10, "body": 30}
    assert tokens.vocab_size == len(tokenizer)
    assert tokens.reader.tensors["title.values"][0] == np.uint16
    assert verify_columns(tokens.reader) == []


@pytest.mark.parametrize(("field", "stored"), [("title", 10), ("body", 30)])
def test_more_tokens_than_stored_is_an_error_with_the_command(tokens, field, stored):
    with pytest.raises(ColumnError) as caught:
        tokens.batch(field, np.arange(2), stored + 1)
    message = str(caught.value)
    assert f"stores {stored}" in message
    assert "tnr shards tokenize" in message and f"--{field}-tokens {stored + 1}" in message


def test_the_repair_of_a_column_makes_the_same_column(tmp_path, tokens):
    shard_set = make_articles(tmp_path / "a", 8, 4)
    options = {"fields": ["title", "abstract"], "title_tokens": 9, "abstract_tokens": 20}
    reader = tokenize_set(shard_set, str(tokens.tokenizer_dir), **options)
    record = reader.folder / "news-000001.json"
    record.unlink()
    with pytest.raises(ColumnError) as caught:
        TokenColumn.open(shard_set, reader.folder.name)
    _, *words = str(caught.value).split("run `")[1].rstrip("`").split()
    assert main(words) == 0
    assert record.exists() and len(list(shard_set.columns_dir.iterdir())) == 1


def test_no_room_beside_the_special_tokens(articles, tokens):
    with pytest.raises(ColumnError, match="no room"):
        tokens.batch("title", np.arange(2), 2)
    with pytest.raises(UsageError, match=r"--title-tokens is 2; .* at least 3"):
        tokenize_set(articles, str(tokens.tokenizer_dir), title_tokens=2)


def test_field_that_is_not_stored(tokens):
    with pytest.raises(ColumnError, match="stores title and body, not the abstract"):
        tokens.batch("abstract", np.arange(2), 5)
    with pytest.raises(ColumnError, match="texts are title, abstract, body and category"):
        tokens.batch("url", np.arange(2), 5)


def test_tokenizing_again_writes_nothing_and_other_lengths_go_beside(tmp_path, tokens):
    shard_set = make_articles(tmp_path / "a", 20, 8)
    name = str(tokens.tokenizer_dir)
    first = tokenize_set(shard_set, name, title_tokens=10, body_tokens=30)
    times = {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
    (first.folder / "news-000001.json").unlink()
    again = tokenize_set(shard_set, name, title_tokens=10, body_tokens=30)
    changed = {p.name for p in again.folder.iterdir() if p.stat().st_mtime_ns != times.get(p)}
    assert changed == {"news-000001.json", "news-000001.safetensors"}
    other = tokenize_set(shard_set, name, title_tokens=11, body_tokens=30)
    assert other.folder != first.folder
    with pytest.raises(ColumnError, match="name one"):
        TokenColumn.open(shard_set)
    assert TokenColumn.open(shard_set, other.folder.name).limits["title"] == 11


def test_processes_give_the_same_bytes(tmp_path, tokens):
    folders = []
    for processes in (1, 2):
        shard_set = make_articles(tmp_path / str(processes), 30, 8)
        name = str(tokens.tokenizer_dir)
        folders.append(tokenize_set(shard_set, name, body_tokens=30, processes=processes).folder)
    cells = sorted(path.name for path in folders[0].glob("*.safetensors"))
    assert len(cells) == 4
    assert all((folders[0] / c).read_bytes() == (folders[1] / c).read_bytes() for c in cells)


def test_special_tokens_in_a_text_are_text(tmp_path, tokens):
    shard_set = make_articles(tmp_path / "a", texts=[("the [SEP] mayor [PAD]", "a [CLS]")] * 2)
    reader = tokenize_set(shard_set, str(tokens.tokenizer_dir), title_tokens=30)
    values, _ = reader.gather_ragged("title", np.arange(2))
    assert not set(values.tolist()) & {0, 2, 3, 4}


def test_tokenizer_that_cannot_be_used(tmp_path, articles, tokens):
    with pytest.raises(DataError, match="there is no such folder"):
        tokenize_set(articles, str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tokenizer can be loaded from the folder"):
        load_tokenizer(tmp_path / "empty")


def test_only_articles_have_texts(tmp_path, articles, tokens):
    impressions = make_clicks(tmp_path / "i", articles).reader.shard_set
    with pytest.raises(DataError, match="holds impressions"):
        tokenize_set(impressions, str(tokens.tokenizer_dir))
    with pytest.raises(DataError, match="holds impressions"):
        train_tokenizer(impressions, tmp_path / "t")


def test_column_without_its_tokenizer_is_refused(tmp_path, tokens):
    shard_set = make_articles(tmp_path / "a", 8, 8)
    reader = tokenize_set(shard_set, str(tokens.tokenizer_dir))
    for path in (reader.folder / "tokenizer").iterdir():
        path.unlink()
    (reader.folder / "tokenizer").rmdir()
    with pytest.raises(ColumnError, match="tnr shards tokenize"):
        TokenColumn.open(shard_set)
    tokenize_set(shard_set, str(tokens.tokenizer_dir))
    assert TokenColumn.open(shard_set).tokenizer_sha256 == tokens.tokenizer_sha256


def test_column_of_another_kind_is_no_token_column(tmp_path, articles):
    clicks = make_clicks(tmp_path / "i", articles)
    with pytest.raises(ColumnError, match="holds 'clicks', not tokens"):
        TokenColumn.open(clicks.reader.shard_set, clicks.reader.folder.name)


@pytest.mark.plm
def test_pretrained_tokenizer(real_encoders, tmp_path):
    name = real_encoders / "all-MiniLM-L6-v2"
    long_body = " ".join(WORDS * 30) + " naïve café façade “quoted” — 日本語テスト 3,000.50 don't"
    pairs = [("The mayor's vote", long_body), ("Straße №5", "short body"), ("x", "")]
    shard_set = make_articles(tmp_path / "a", texts=pairs)
    tokens = TokenColumn(tokenize_set(shard_set, str(name), title_tokens=8, body_tokens=128))
    tokenizer = load_tokenizer(name)
    for field, length in (("title", 8), ("body", 128)):
        expected = tokenizer(
            [pair[field == "body"] for pair in pairs],
            truncation=True,
            max_length=length,
            padding=True,
            return_tensors="np",
        )
        ids, mask = tokens.batch(field, np.arange(3), length)
        np.testing.assert_array_equal(ids, expected["input_ids"])
        np.testing.assert_array_equal(mask, expected["attention_mask"])
    assert cuts_at_spaces(tokenizer.backend_tokenizer.to_str())
    assert tokens.tokenizer_sha256 == tokenizer_sha256(load_tokenizer(tokens.tokenizer_dir))
    assert list_columns(shard_set)[0].made_from["prefix_ids"] == [101]
    assert json.loads((tokens.folder / "column.json").read_text())["name"] == "tokens"


@pytest.mark.plm
@pytest.mark.data
def test_pretrained_tokenizer_on_real_bodies(real_encoders, real_data):
    backend = load_tokenizer(real_encoders / "all-MiniLM-L6-v2").backend_tokenizer
    with gzip.open(real_data / "news-doj" / "doj.jsonl.gz", "rt", encoding="utf-8") as lines:
        bodies = [str(json.loads(line)["body"]) for line in islice(lines, 300)]
    assert sum(len(body) for body in bodies) > 500_000
    backend.no_truncation()
    backend.no_padding()
    whole = backend.encode_batch(bodies, add_special_tokens=False)
    encoder = TextEncoder(backend.to_str())
    for limit in (22, 126, 510):
        assert encoder.encode(bodies, limit) == [encoding.ids[:limit] for encoding in whole]


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    budget=st.integers(1, 200),
    more=st.integers(0, 70),
)
def test_length_groups_hold_every_text_once_within_the_budget(lengths, budget, more):
    lengths = np.array(lengths)
    groups = length_groups(lengths, budget)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    laid_out = lengths[np.concatenate(groups)]
    assert (np.diff(laid_out) <= 0).all()
    fits = [len(group) == 1 or len(group) * lengths[group].max() <= budget for group in groups]
    assert all(fits)
    for group in groups:  # no further cut is worth it
        saved = [
            (lengths[group[0]] - lengths[group[k]]) * (len(group) - k) for k in range(len(group))
        ]
        assert max(saved) < max(budget // WORTH, 1)
    exactly = most_groups(len(lengths), 40, budget) + more
    fixed = length_groups(lengths, budget, exactly)
    assert len(fixed) == exactly
    assert set(np.concatenate(fixed).tolist()) == set(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * lengths[group].max() <= budget for group in fixed)
    if exactly <= len(lengths):
        assert sum(map(len, fixed)) == len(lengths)


def test_unlike_lengths_within_the_budget_are_told_apart_and_like_ones_are_not():
    mixed = np.array([9] * 30 + [100] + [11] * 30)
    groups = length_groups(mixed, 10_000)
    assert [sorted(set(mixed[group].tolist())) for group in groups] == [[100], [9, 11]]
    assert len(length_groups(np.array([10, 11, 12] * 20), 10_000)) == 1


def test_too_few_length_groups_for_the_budget_are_an_error():
    with pytest.raises(ValueError, match="need 3 groups of 10 tokens, not 2"):
        length_groups(np.array([10, 9, 8]), 10, 2)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), field=st.sampled_from(["title", "body"]), budget=st.integers(1, 90))
def test_groups_are_the_batch_with_less_padding(tokens, data, field, budget):
    rows = np.array(data.draw(st.lists(st.integers(0, 59), min_size=1, max_size=20)))
    limit = data.draw(st.integers(3, 10 if field == "title" else 30))
    ids, mask = tokens.batch(field, rows, limit)
    groups = tokens.view((field, limit)).groups(rows, budget, data.draw(st.none() | st.just(60)))
    seen = set()
    for group in groups:
        assert group.ids.shape == group.mask.shape
        assert group.mask.any(axis=0).all()  # no column of nothing but padding
        width = group.ids.shape[1]
        np.testing.assert_array_equal(group.ids, ids[group.places, :width])
        np.testing.assert_array_equal(group.mask, mask[group.places, :width])
        assert not mask[group.places, width:].any()
        seen |= set(group.places.tolist())
    assert seen == set(range(len(rows)))


def test_groups_of_no_rows(tokens):
    assert tokens.view(("title", 9)).groups(np.zeros(0, dtype=np.int64), 30) == []
