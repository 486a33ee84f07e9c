"""Loading: complete or not at all, never a pickle, and errors that say what was tried."""

import json

import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, texts, tiny_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from trainer.errors import ModelError
from trainer.models.build import build_news_encoder, build_recommender
from trainer.models.loading import load_model
from trainer.models.news_encoder import NewsEncoder
from trainer.models.recommender import Recommender


def build(**changes):
    config = tiny_model(**changes)
    return build_recommender(config, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)


@pytest.fixture
def export(tmp_path):
    model = build()
    folder = tmp_path / "export"
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("user_encoder", ["additive", "nrms"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_saved_recommender_loads_as_it_was(bias, user_encoder, tmp_path):
    model = build(backbone={"relative_position_bias": bias}, user_encoder=user_encoder).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Recommender)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.dtype == torch.float32 for value in after.values())
    ids, mask = texts([5, 2], padded_to=5)
    with torch.no_grad():
        assert torch.equal(model.encode_news(ids, mask), loaded.encode_news(ids, mask))
        history = torch.randn(2, 3, 16)
        filled = torch.tensor([[0, 1, 1], [0, 0, 0]])
        assert torch.equal(
            model.encode_users(history, filled), loaded.encode_users(history, filled)
        )


def test_a_saved_news_encoder_loads_as_one(tmp_path):
    build_news_encoder(tiny_model(), vocab_size=VOCAB_SIZE, pad_id=PAD_ID).save_pretrained(tmp_path)
    assert type(load_model(tmp_path)) is NewsEncoder


def test_an_export_in_half_precision_loads_in_fp32(tmp_path):
    build().half().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_the_configuration_is_whole_and_names_no_other_folder(tmp_path):
    BertModel(
        BertConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
        )
    ).save_pretrained(tmp_path / "plain")
    model = build(backbone={"name": str(tmp_path / "plain")})
    model.save_pretrained(tmp_path / "export")
    text = (tmp_path / "export" / "config.json").read_text()
    assert str(tmp_path) not in text
    backbone = json.loads(text)["news_encoder"]["backbone"]
    assert backbone["model_type"] == "bert"
    defaults = BertConfig().to_dict()
    assert set(defaults) - {"transformers_version", "_name_or_path"} <= set(backbone)


def test_loading_and_saving_show_no_bar(export, capfd):
    _, folder = export
    load_model(folder).save_pretrained(folder)
    captured = capfd.readouterr()
    assert "it/s" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_are_refused_by_name(export, change):
    _, folder = export
    weights = load_file(folder / "model.safetensors")
    name = "user_encoder.pad_doc"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        name = "user_encoder.other"
        weights[name] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=name if change != "mismatched" else "pad_doc|mismatch"):
        load_model(folder)


def test_pickled_weights_are_refused(export):
    model, folder = export
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        load_model(folder)
    with pytest.raises((ModelError, OSError)):
        Recommender.from_pretrained(folder)


def test_damaged_weights_are_refused(export):
    _, folder = export
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_what_is_no_export_is_refused(export, tmp_path):
    _, folder = export
    with pytest.raises(ModelError, match=r"no config\.json; did you mean .*export"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"type 'bert'.*model\.backbone\.name"):
        load_model(folder)
    (folder / "config.json").write_text('{"model_type": ["bert"]}')
    with pytest.raises(ModelError, match=r"a model of type .*bert"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="does not hold JSON"):
        load_model(folder)
    (folder / "config.json").write_text('{"model_type": "tnr-recommender"}')
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load_model(folder)


def test_an_unknown_backbone_says_what_was_tried():
    model = tiny_model({"name": "some/unknown-encoder"})
    with pytest.raises(ModelError) as caught:
        build_news_encoder(model, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)
    message = str(caught.value)
    assert "'some/unknown-encoder' was not found" in message
    assert "a folder" in message and "cache" in message and "hf download" in message


def test_a_folder_without_a_model_says_what_it_has(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"is a folder, but .*notes\.txt"):
        build_news_encoder(
            tiny_model({"name": str(tmp_path)}), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
        )


def plain_bert() -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
        )
    )


def test_a_backbone_without_all_its_weights_is_refused(tmp_path):
    plain_bert().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 .*encoder\.layer\.1\.output\.dense\.weight"):
        build_news_encoder(
            tiny_model({"name": str(tmp_path)}), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
        )


def test_a_pickled_backbone_is_refused(tmp_path):
    model = plain_bert()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        build_news_encoder(
            tiny_model({"name": str(tmp_path)}), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
        )


def test_a_backbone_stored_in_half_precision_is_trained_in_fp32(tmp_path):
    plain_bert().half().save_pretrained(tmp_path)
    encoder = build_news_encoder(
        tiny_model({"name": str(tmp_path)}), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
    )
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_a_translation_model_is_no_backbone(tmp_path):
    from transformers import T5Config

    T5Config(d_model=16, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'t5', which is not a text encoder"):
        build_news_encoder(
            tiny_model({"name": str(tmp_path)}), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
        )
