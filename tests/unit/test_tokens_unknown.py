"""A tokenizer that does not know the language of the texts: said when they are tokenized."""

import pytest
from helpers.corpora import articles, write_json_lines
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shards.build import build_articles
from trainer.cli.main import main

HEBREW = {"title": "שלום עולם", "body": "גוף הכתבה"}


def tokenize(folder, rows, **special):
    words = {word for row in articles(20) for word in f"{row['title']} {row['body']}".split()}
    names = ["[PAD]", "[UNK]", *sorted(words)]
    backend = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save_and_tokenize(folder, rows, backend, **special)


def save_and_tokenize(folder, rows, backend, **special):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", **special)
    tokenizer.save_pretrained(folder / "tokenizer")
    build_articles([write_json_lines(folder / "a.jsonl", rows)], folder / "set")
    words = ["tokenize", folder / "set", "--tokenizer", folder / "tokenizer"]
    assert main(["shards", *map(str, words)]) == 0


@pytest.mark.parametrize("foreign", [0, 1, 20])
def test_unknown_tokens_are_said(tmp_path, capsys, foreign):
    rows = [row | (HEBREW if n < foreign else {}) for n, row in enumerate(articles(20))]
    rows = [row | {"title": f"{row['title']} {row['id']}"} if foreign else row for row in rows]
    tokenize(tmp_path, rows, unk_token="[UNK]")
    said = capsys.readouterr().out
    wanted = "note: the tokenizer does not know 100% of the tokens of the body (from 20 articles"
    assert (wanted in said) == (foreign == 20)
    assert ("does not know" in said) == (foreign > 0)


@pytest.mark.parametrize("foreign", [False, True])
def test_letters_that_get_no_token_are_said(tmp_path, capsys, foreign):
    """A byte-level tokenizer knows the letters that it was trained on, and drops all others."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rows = [row | {"title": "Zürich " * 4} if foreign else row for row in articles(20)]
    texts = [f"{row['title']} {row['body']} {row['id']}" for row in articles(20)]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["[PAD]"])
    backend.train_from_iterator(texts, trainer)
    save_and_tokenize(tmp_path, rows, backend)
    said = capsys.readouterr().out
    assert ("of the letters of the title without a token (from 20 texts" in said) == foreign
    assert "of the letters of the body" not in said


def test_a_tokenizer_without_an_unknown_token(tmp_path, capsys):
    tokenize(tmp_path, articles(20))
    assert "does not know" not in capsys.readouterr().out
