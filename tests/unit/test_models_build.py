"""Models from a configuration: the paper's sizes, students, starts from exports, refusals."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, texts, tiny_model
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from trainer.config.clicks import ClickModelConfig
from trainer.config.schema import BackboneConfig, ModelConfig
from trainer.errors import ModelError
from trainer.models.build import build_news_encoder, build_recommender
from trainer.models.loading import load_model
from trainer.models.news_encoder import NewsEncoder
from trainer.models.parameters import count_parameters

# Counted by the paper, used by nothing: BERT's pooler, and a classifier with two labels.
UNUSED_POOLER = 768 * 768 + 768
UNUSED_CLASSIFIER = 768 * 2 + 2

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
FAMILIES = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=66),
    "mpnet": MPNetConfig(**SIZES, max_position_embeddings=66),
    "distilbert": DistilBertConfig(
        vocab_size=VOCAB_SIZE, dim=32, n_layers=4, n_heads=4, hidden_dim=48
    ),
    "modernbert": ModernBertConfig(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "albert": AlbertConfig(**SIZES, embedding_size=16),
}


def build(config: ModelConfig, pad_id: int = PAD_ID, seed: int = 0) -> NewsEncoder:
    torch.manual_seed(seed)
    return build_news_encoder(config, vocab_size=VOCAB_SIZE, pad_id=pad_id)


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def papers_model(num_layers: int) -> ModelConfig:
    """UniLMv2-base with random weights, or its first layers as one of the paper's students."""
    sizes = {"num_layers": 12, "hidden_size": 768, "num_heads": 12, "intermediate_size": 3072}
    layers = tuple(range(num_layers))
    backbone = BackboneConfig(**sizes, layers=layers, relative_position_bias=True)
    return ClickModelConfig(backbone=backbone)


@pytest.mark.parametrize(
    ("layers", "parameters"),
    [(12, 109_886_884), (4, 53_183_908), (2, 39_008_164), (1, 31_920_292)],
)
def test_the_papers_four_parameter_counts(layers, parameters):
    with torch.device("meta"):
        model = build_recommender(papers_model(layers), vocab_size=30522, pad_id=0)
    assert count_parameters(model) + UNUSED_POOLER + UNUSED_CLASSIFIER == parameters


def test_the_papers_parts_have_the_papers_sizes():
    with torch.device("meta"):
        model = build_recommender(papers_model(1), vocab_size=30522, pad_id=0)
    backbone = model.news_encoder.backbone
    parts = {
        "embeddings": (backbone.language_model.embeddings, 23_837_184),
        "layer": (backbone.language_model.encoder.layer[0], 7_087_872),
        "table": (backbone.rel_pos_bias, 384),
        "news pooling": (model.news_encoder.pooling, 154_001),
        "dense": (model.news_encoder.dense, 196_864),
        "user pooling": (model.user_encoder.pooling, 51_601),
        "user": (model.user_encoder, 51_601 + 256),
    }
    assert {name: count_parameters(part) for name, (part, _) in parts.items()} == {
        name: size for name, (_, size) in parts.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_any_encoder_serves_and_survives_a_round_trip(family, tmp_path):
    config = FAMILIES[family]
    AutoModel.from_config(config).save_pretrained(tmp_path / "plain")
    pad_id = config.pad_token_id
    model = tiny_model({"name": str(tmp_path / "plain")})
    encoder = build(model, pad_id).eval()
    ids, mask = texts([6, 3], padded_to=6)
    ids[mask == 0] = pad_id
    long_ids = torch.nn.functional.pad(ids, (0, 9), value=pad_id)
    with torch.no_grad():
        vectors = encoder(ids, mask)
        padded = encoder(long_ids, torch.nn.functional.pad(mask, (0, 9)))
    torch.testing.assert_close(vectors, padded, atol=2e-6, rtol=1e-5)
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]
    encoder.save_pretrained(tmp_path / "export")
    loaded = load_model(tmp_path / "export")
    assert same_weights(encoder, loaded)
    with torch.no_grad():
        assert torch.equal(loaded(ids, mask), vectors)


@pytest.mark.parametrize("layers", [(0,), (0, 1), (1, 3)])
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert"])
def test_students_keep_the_named_layers_and_survive_a_round_trip(family, layers, tmp_path):
    config = FAMILIES[family]
    whole = AutoModel.from_config(config)
    whole.save_pretrained(tmp_path / "plain")
    model = tiny_model({"name": str(tmp_path / "plain"), "layers": layers})
    student = build(model, config.pad_token_id)
    language_model = student.backbone.language_model
    name = "transformer.layer" if family == "distilbert" else "encoder.layer"
    kept, all_layers = language_model.get_submodule(name), whole.get_submodule(name)
    assert len(kept) == len(layers) == student.config.backbone.num_hidden_layers
    for place, number in enumerate(layers):
        assert same_weights(kept[place], all_layers[number])
    assert same_weights(language_model.embeddings, whole.embeddings)
    student.save_pretrained(tmp_path / "export")
    loaded = load_model(tmp_path / "export")
    assert same_weights(student, loaded)
    ids, mask = texts([6, 4], padded_to=6)
    ids[mask == 0] = config.pad_token_id
    with torch.no_grad():
        assert torch.equal(loaded(ids, mask), student.eval()(ids, mask))


def test_first_layers_of_a_family_with_settings_a_layer(tmp_path):
    config = FAMILIES["modernbert"]
    AutoModel.from_config(config).save_pretrained(tmp_path)
    student = build(tiny_model({"name": str(tmp_path), "layers": (0, 1)}))
    assert student.config.backbone.layer_types == config.layer_types[:2]
    with pytest.raises(ModelError, match="Select the first layers"):
        build(tiny_model({"name": str(tmp_path), "layers": (1, 3)}))


def test_layers_of_shared_weights_cannot_be_selected(tmp_path):
    AutoModel.from_config(FAMILIES["albert"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no list of 4 layers"):
        build(tiny_model({"name": str(tmp_path), "layers": (0,)}))


@pytest.mark.parametrize("layers", [(), (4,), (-1,), (1, 0), (2, 2)])
def test_impossible_layers_are_refused_with_the_range(layers):
    with pytest.raises(ModelError, match="between 0 and 3"):
        build(tiny_model({"layers": layers}))


def test_the_same_seed_gives_the_same_model():
    assert same_weights(build(tiny_model()), build(tiny_model()))
    assert not same_weights(build(tiny_model()), build(tiny_model(), seed=1))


def test_dropout_of_random_and_loaded_backbones_can_be_set(tmp_path):
    AutoModel.from_config(FAMILIES["distilbert"]).save_pretrained(tmp_path)
    encoder = build(
        tiny_model({"name": str(tmp_path), "hidden_dropout": 0.25, "attention_dropout": 0.0})
    )
    assert encoder.config.backbone.dropout == 0.25
    assert encoder.config.backbone.attention_dropout == 0.0
    found = {m.p for m in encoder.backbone.modules() if isinstance(m, torch.nn.Dropout)}
    assert found == {0.25, 0.0}


def test_dropout_left_out_is_the_backbones_own():
    encoder = build(tiny_model({"hidden_dropout": None, "attention_dropout": None}))
    assert encoder.config.backbone.hidden_dropout_prob == 0.1
    assert encoder.config.backbone.attention_probs_dropout_prob == 0.1


class TestStartingFromAnExport:
    @pytest.fixture
    def teacher(self, tmp_path):
        model = build_recommender(
            tiny_model({"relative_position_bias": True}), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
        )
        with torch.no_grad():
            model.news_encoder.backbone.rel_pos_bias.weight.normal_()
        model.save_pretrained(tmp_path / "teacher")
        return model, tiny_model(init=str(tmp_path / "teacher"))

    def test_a_recommender_gives_both_encoders(self, teacher):
        model, start = teacher
        again = build_recommender(start, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)
        assert same_weights(model, again)

    def test_a_recommender_gives_its_news_encoder(self, teacher):
        model, start = teacher
        assert same_weights(model.news_encoder, build(start))

    def test_a_news_encoder_gets_a_random_user_encoder(self, teacher, tmp_path):
        model, start = teacher
        model.news_encoder.save_pretrained(tmp_path / "news")
        torch.manual_seed(8)
        again = build_recommender(
            replace(start, init=str(tmp_path / "news")), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
        )
        assert same_weights(model.news_encoder, again.news_encoder)
        assert not torch.equal(model.user_encoder.pad_doc, again.user_encoder.pad_doc)
        assert again.user_encoder.pad_doc.abs().max() <= 1.0

    def test_layers_and_dropout_apply_to_it(self, teacher):
        model, start = teacher
        student = build(replace(start, backbone=BackboneConfig(layers=(0, 2), hidden_dropout=0.5)))
        old = model.news_encoder.backbone.language_model.encoder.layer
        new = student.backbone.language_model.encoder.layer
        assert len(new) == 2
        assert same_weights(new[1], old[2])
        assert new[0].output.dropout.p == 0.5
        assert student.config.backbone.hidden_dropout_prob == 0.5
        assert student.backbone.language_model.config._attn_implementation == "sdpa"
        table = model.news_encoder.backbone.rel_pos_bias.weight
        assert torch.equal(student.backbone.rel_pos_bias.weight, table)

    @pytest.mark.parametrize("change", [{"news_dim": 32}, {"pooling": "mean"}, {"query_dim": 9}])
    def test_another_shape_is_refused_by_name_with_both_values(self, teacher, change):
        _, start = teacher
        field, value = next(iter(change.items()))
        with pytest.raises(ModelError, match=f"model.{field} is {value!r}"):
            build(replace(start, **change))

    def test_another_user_encoder_is_refused(self, teacher):
        _, start = teacher
        with pytest.raises(ModelError, match=r"model.user_encoder is 'nrms'.*'additive'"):
            build_recommender(
                replace(start, user_encoder="nrms"), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
            )

    def test_the_masking_switch_follows_the_recipe(self, teacher):
        _, start = teacher
        assert build(replace(start, pooling_mask=False)).config.pooling_mask is False

    def test_a_bias_that_it_lacks_is_refused(self, tmp_path):
        build(tiny_model()).save_pretrained(tmp_path)
        start = tiny_model({"relative_position_bias": True}, init=str(tmp_path))
        with pytest.raises(ModelError, match="trained without it"):
            build(start)


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    AutoModel.from_config(FAMILIES["roberta"]).save_pretrained(tmp_path)
    model = tiny_model({"name": str(tmp_path)})
    with pytest.raises(ModelError, match=r"101 entries.*only 100"):
        build_news_encoder(model, vocab_size=101, pad_id=1)
    with pytest.raises(ModelError, match=r"padded with id 0.*with id 1"):
        build_news_encoder(model, vocab_size=100, pad_id=0)


def test_a_head_that_does_not_divide_the_width_is_refused():
    with pytest.raises(
        ModelError, match=r"hidden_size 32 is not a multiple of backbone\.num_heads 5"
    ):
        build(tiny_model({"num_heads": 5}))


@pytest.mark.plm
def test_a_real_encoder_gives_its_first_layers(real_encoders):
    folder = real_encoders / "all-MiniLM-L6-v2"
    model = ClickModelConfig(backbone=BackboneConfig(name=str(folder), layers=(0, 1, 2, 3)))
    student = build_news_encoder(model, vocab_size=30522, pad_id=0)
    whole = AutoModel.from_pretrained(folder, local_files_only=True)
    assert len(student.backbone.language_model.encoder.layer) == 4
    for number in range(4):
        assert same_weights(
            student.backbone.language_model.encoder.layer[number], whole.encoder.layer[number]
        )
