"""A mistyped path is named as one that is not there, with the path that is most like it."""

import pytest
from transformers import BertConfig, BertModel

from shards.build import build_articles
from shards.errors import DataError
from shards.pretrained import find_folder
from shards.reader import ShardSet
from trainer.cli.main import main
from trainer.errors import ModelError
from trainer.export.folder import load_export
from trainer.models.backbone import max_tokens
from trainer.models.layers import find_layers
from trainer.models.loading import load_news_config
from trainer.teacher_server.teachers import open_teachers


@pytest.fixture
def folder(tmp_path):
    for name in ("articles", "student", "models/bert", "models/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "news.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant", "find"),
    [
        ("artcles", "articles", ShardSet.open),
        ("news.jsnl", "news.jsonl", lambda path: build_articles([path], path.parent / "out")),
        ("studnt", "student", load_export),
        ("studnt", "student", load_news_config),
        ("studnt/export", "student", load_export),
        ("studnt", "student", lambda path: open_teachers([path])),
        ("modls/bert", "models/bert", load_export),
        ("modls/bert/export", "models/bert", lambda path: open_teachers([path])),
        ("modls/brt", "models/bert", find_folder),
        ("models/brt", "models/bert", ShardSet.open),
        ("modls/articles", "models", load_news_config),
    ],
)
def test_near_name(folder, typed, meant, find):
    with pytest.raises((DataError, ModelError)) as raised:
        find(folder / typed)
    said = str(raised.value)
    assert "no such folder" in said or "does not exist" in said
    assert f"did you mean '{folder / meant}'?" in said


@pytest.mark.parametrize("place", ["export", "copies/step_00000004", "mine", "run/export"])
def test_exports_inside_of_a_folder_are_named(folder, place):
    (folder / "student" / place).mkdir(parents=True)
    (folder / "student" / place / "tnr.json").write_text("{}")
    meant = str(folder / "student" / place)
    with pytest.raises(ModelError, match=f"has no tnr.json; did you mean {meant!r}\\?"):
        load_export(folder / "student")


def test_of_many_exports_inside_a_few_are_named(folder):
    for step in range(9):
        (folder / f"student/step_{step}").mkdir()
        (folder / f"student/step_{step}/tnr.json").write_text("{}")
    with pytest.raises(ModelError, match=r"did you mean \S+step_0', \S+ \S+2' or one of 6 more\?"):
        load_export(folder / "student")


def test_a_folder_of_encoders_is_not_taken_for_one(folder):
    bert = folder / "models" / "bert"
    (bert / "config.json").write_text("{}")
    with pytest.raises(DataError, match=f"not the folder of a model .*; did you mean '{bert}'"):
        find_folder(folder / "models")
    assert find_folder(bert) == bert
    (folder / "models" / "tokenizer.json").write_text("{}")  # with a module's folder beside it
    assert find_folder(folder / "models") == folder / "models"


def test_a_file_where_a_set_is_expected_is_to_be_built(folder):
    with pytest.raises(DataError, match=r"news\.jsonl is a file.* --articles \S+l --out FOLDER"):
        ShardSet.open(folder / "news.jsonl")


def test_a_suggestion_ends_in_one_mark(folder):
    with pytest.raises(ModelError) as raised:
        open_teachers([folder / "studnt"])
    assert "student'? To make" in str(raised.value)


def test_no_command_for_a_path_that_cannot_be_a_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="did you mean") as raised:
        find_folder("./studnt")
    assert "hf download" not in str(raised.value)


def test_no_random_weights_for_a_teacher(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["teachers", "adopt", "modls/brt", "--out", "out"]) == 1
    said = capsys.readouterr().err
    assert "tnr: error: 'modls/brt' was not found: there is no such folder" in said
    assert "did you mean 'models/bert'?" in said and "use `random`" not in said


class _Hashed(BertModel):
    def get_input_embeddings(self):
        raise NotImplementedError


def test_a_family_without_word_embeddings():
    config = BertConfig(
        vocab_size=8,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=8,
    )
    with pytest.raises(ModelError, match="'bert' has no table of word embeddings"):
        max_tokens(_Hashed(config))
    model = BertModel(config)
    model.config.num_hidden_layers = 2
    with pytest.raises(ModelError, match=r"give --model\.backbone\.layers None --model\.train"):
        find_layers(model)
