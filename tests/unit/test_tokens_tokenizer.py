"""Training a tokenizer: a Hugging Face folder whose ids are SentencePiece's own."""

# ruff: noqa: RUF001

import json
import shutil

import pytest
import sentencepiece
from helpers.sets import article_texts, make_articles
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from shards.errors import DataError, UsageError
from shards.tokenize import TextEncoder, tokenize_set
from shards.tokenizer import (
    SENTENCEPIECE_FILE,
    load_tokenizer,
    tokenizer_facts,
    tokenizer_sha256,
    train_tokenizer,
)

REAL_LOOKING = [
    "The mayor said “we’ll rebuild” — and the council’s vote was 5–4.",
    "Naïve café façade, №5 ½ cup, ﬁne oﬃce, ＡＢＣ１２３, x² + y³ ™",
    "STRASSE Straße ẞ, ΣΊΣΥΦΟΣ, İstanbul, Ǆ, Привет МИР, שלום עולם, مرحبا بالعالم",
    "日本語テスト。한국어 기사 제목 中文新闻标题，測試",
    "tabs\tand\nnew\r\nlines   and    runs  of spaces ",
    "  leading and trailing  ",
    "e\u0301clair cafe\u0301 n\u0303 \u200bzero\u00a0width\u2003em\u3000ideographic",
    "🙂👍🏽🇩🇪 emoji, https://example.org/a?b=c&d=%20, user@example.org",
    "a▁b ▁ underscore_ ▁▁",
    "$1,234.56 (up 7.8%) -3°C 10km/h don't can't O'Neil's",
    "",
    " ",
    "\n",
]


def corpus():
    texts = [article_texts(row) for row in range(120)]
    return texts + [(line, line * 3) for line in REAL_LOOKING if line.strip()]


@pytest.fixture(scope="module")
def articles(tmp_path_factory):
    return make_articles(tmp_path_factory.mktemp("corpus") / "a", texts=corpus())


@pytest.fixture(scope="module", params=[True, False], ids=["lower", "cased"])
def trained(request, articles, tmp_path_factory):
    """(Hugging Face tokenizer as loaded from its folder, SentencePiece processor, folder)."""
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(articles, folder, 600, lower_case=request.param, character_coverage=1.0)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_FILE))
    return load_tokenizer(folder), model, folder


@pytest.mark.parametrize("text", REAL_LOOKING)
def test_ids_are_those_of_sentencepiece(trained, text):
    tokenizer, model, _ = trained
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text)
    assert tokenizer(text)["input_ids"] == [2, *model.encode(text), 3]


LETTERS = (
    "abcXYZéÉßΣςσıİğñÑçøœﬁﬀ½²№™ПриВЕТ日本語한국قلब0129 "
    ".,;:!?'’“”«»—–…-_/()[]$%&@#+=\t\n\u00a0\u3000🙂"
)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from(LETTERS), max_size=60))
def test_ids_are_those_of_sentencepiece_on_any_mixture(trained, text):
    tokenizer, model, _ = trained
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text)


def test_ids_are_those_of_sentencepiece_on_the_whole_corpus(trained):
    tokenizer, model, _ = trained
    for title, body in corpus():
        for text in (title, body):
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text)


def test_special_pieces(trained):
    tokenizer, model, _ = trained
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(pieces) == [0, 1, 2, 3, 4]
    assert [model.id_to_piece(i) for i in range(5)] == pieces
    assert len(tokenizer) == model.get_piece_size()
    special = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token)
    assert (*special, tokenizer.mask_token) == tuple(pieces)
    facts = tokenizer_facts(tokenizer)
    assert (facts.prefix_ids, facts.suffix_ids, facts.pad_id) == ((2,), (3,), 0)
    assert facts.vocab_size == len(tokenizer)


def test_case_is_folded_or_kept(articles, trained):
    tokenizer, _, _ = trained
    folds = tokenizer("MAYOR")["input_ids"] == tokenizer("mayor")["input_ids"]
    knows_upper = any("M" in piece for piece in tokenizer.get_vocab() if piece != "[MASK]")
    assert folds != knows_upper


def test_text_comes_back(trained):
    tokenizer, _, _ = trained
    ids = tokenizer("the mayor and the council")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the mayor and the council"


def test_hash_knows_the_tokenizer_not_its_folder(trained, articles, tmp_path):
    tokenizer, _, folder = trained
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert tokenizer_sha256(load_tokenizer(tmp_path / "elsewhere")) == tokenizer_sha256(tokenizer)
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert tokenizer_sha256(load_tokenizer(tmp_path / "saved")) == tokenizer_sha256(tokenizer)
    other = train_tokenizer(articles, tmp_path / "other", 400, max_sentences=50)
    assert tokenizer_sha256(other) != tokenizer_sha256(tokenizer)


def test_hash_does_not_see_truncation_or_padding_state(trained):
    tokenizer, _, folder = trained
    used = load_tokenizer(folder)
    used(["a", "b c d e"], truncation=True, max_length=4, padding=True)
    assert tokenizer_sha256(used) == tokenizer_sha256(tokenizer)


def test_training_again_gives_the_same_tokenizer(articles, tmp_path):
    for name in ("a", "b"):
        train_tokenizer(articles, tmp_path / name, 300, max_sentences=100)
    for file in (SENTENCEPIECE_FILE, "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_fewer_sentences_give_another_tokenizer(articles, tmp_path):
    one = train_tokenizer(articles, tmp_path / "a", 300, max_sentences=20)
    two = train_tokenizer(articles, tmp_path / "b", 300, max_sentences=200)
    assert tokenizer_sha256(one) != tokenizer_sha256(two)


def test_long_bodies_are_trained_on_in_pieces(tmp_path):
    # SentencePiece on its own leaves out a sentence of this length.
    body = " ".join(["river", "storm", "zebra"] * 1000)
    shard_set = make_articles(tmp_path / "a", texts=[("title", body), ("other", "x" * 9000)])
    tokenizer = train_tokenizer(shard_set, tmp_path / "t", 40)
    assert "▁zebra" in tokenizer.get_vocab()


def test_existing_folder_is_not_overwritten(articles, trained):
    _, _, folder = trained
    with pytest.raises(DataError, match="exists already"):
        train_tokenizer(articles, folder, 300)


def test_vocabulary_smaller_than_the_alphabet(articles, tmp_path):
    with pytest.raises(DataError, match="SentencePiece cannot train 12 pieces"):
        train_tokenizer(articles, tmp_path / "t", 12)
    assert not (tmp_path / "t").exists()
    with pytest.raises(UsageError, match="vocab_size 5"):
        train_tokenizer(articles, tmp_path / "t", 5)


def saved(tmp_path, model, trainer, texts, *, special=(), ends=True, normalizer=None):
    """A tokenizer trained on texts, as a folder."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator(texts, trainer)
    if ends:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(tmp_path)
    return load_tokenizer(tmp_path)


MARKS = ["[PAD]", "[CLS]", "[SEP]"]


def test_special_tokens_are_found_without_a_given_letter(tmp_path):
    """A tokenizer of another script makes nothing of Latin letters, and has no unknown token."""
    texts = ["שלום עולם כותרת חדשה"] * 20
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=MARKS)
    tokenizer = saved(tmp_path, models.BPE(), trainer, texts)
    assert tokenizer("a")["input_ids"] == [1, 2]
    facts = tokenizer_facts(tokenizer)
    assert (facts.prefix_ids, facts.suffix_ids) == ((1,), (2,))


def test_special_tokens_of_a_word_list_without_an_unknown_token(tmp_path):
    trainer = trainers.WordLevelTrainer(special_tokens=MARKS)
    tokenizer = saved(
        tmp_path / "t", models.WordLevel(), trainer, ["Title Body words"] * 2,
        normalizer=normalizers.Lowercase(),
    )  # fmt: skip
    facts = tokenizer_facts(tokenizer)
    assert (facts.prefix_ids, facts.suffix_ids) == ((1,), (2,))
    known = make_articles(tmp_path / "known", texts=[("title words", "body")] * 2)
    tokenize_set(known, tmp_path / "t")
    other = make_articles(tmp_path / "other", texts=[("another title", "body")] * 2)
    for processes in (1, 2):
        with pytest.raises(DataError, match=r"cannot encode every text: .*\[UNK\].*unknown token"):
            tokenize_set(other, tmp_path / "t", processes=processes)


def test_words_that_cannot_be_encoded_at_all_are_one_line(tmp_path):
    trainer = trainers.WordLevelTrainer(special_tokens=MARKS)
    tokenizer = saved(
        tmp_path, models.WordLevel(), trainer, ["ab cd"], normalizer=normalizers.Replace("a", "b")
    )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["normalizer"] = {"type": "Prepend", "prepend": "x"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(DataError, match="encodes none of the first 1,000 words"):
        tokenizer_facts(load_tokenizer(tmp_path))


@pytest.mark.parametrize("size", [1_000_001, 2_000_000_000])
def test_a_vocabulary_that_no_training_can_end_with_is_refused(size, articles, tmp_path):
    with pytest.raises(UsageError, match=f"vocab_size {size} must be above 5 and at most 1000000"):
        train_tokenizer(articles, tmp_path / "t", size)
    assert not (tmp_path / "t").exists()


def test_a_panic_of_the_library_at_a_text_is_one_line():
    class PanicException(BaseException):
        """What pyo3 raises, which no Exception catches."""

    class Panicking:
        def encode_batch_fast(self, texts, **options):
            raise PanicException("index out of range")

    encoder = TextEncoder(Tokenizer(models.WordLevel({"a": 0})).to_str())
    encoder._tokenizer = Panicking()
    with pytest.raises(DataError, match=r"cannot encode every text: .*panicked: index out of"):
        encoder.encode(["a"], 3)
