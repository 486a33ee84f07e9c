"""What is frozen, optimizer groups, counts."""

import pytest
import torch
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, texts, tiny_model
from torch import nn

from trainer.config.schema import OptimizerConfig
from trainer.errors import ModelError
from trainer.models.build import build_recommender
from trainer.models.parameters import count_parameters, parameter_groups, set_trainable
from trainer.models.projection import TeacherProjections

LANGUAGE_MODEL = "news_encoder.backbone.language_model."


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_recommender(
        tiny_model({"relative_position_bias": True}), vocab_size=VOCAB_SIZE, pad_id=PAD_ID
    )


class Task(nn.Module):
    """A task as the engine sees it: the model and projections of its own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.projections = TeacherProjections([8, 24], 16)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("layers", [0, 1, 2, 4, 9])
def test_the_top_layers_and_everything_outside_are_trained(model, layers):
    set_trainable(model, layers)
    first = max(4 - layers, 0)
    for name, parameter in model.named_parameters():
        if not name.startswith("news_encoder.backbone."):
            expected = True
        elif name.startswith(f"{LANGUAGE_MODEL}encoder.layer."):
            expected = (
                int(name.removeprefix(f"{LANGUAGE_MODEL}encoder.layer.").split(".")[0]) >= first
            )
        else:
            expected = False
        assert parameter.requires_grad is expected, name


def test_none_trains_everything_again(model):
    set_trainable(model, 1)
    set_trainable(model, None)
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_the_builder_applies_it():
    config = tiny_model(trainable_layers=1)
    built = build_recommender(config, vocab_size=VOCAB_SIZE, pad_id=PAD_ID)
    layers = {name.split(".")[5] for name in trained(built) if name.startswith(LANGUAGE_MODEL)}
    assert layers == {"3"}


def test_a_negative_number_is_refused(model):
    with pytest.raises(ModelError, match="trainable_layers is -1"):
        set_trainable(model, -1)


def test_frozen_parts_stay_and_keep_their_dropout():
    config = tiny_model({"hidden_dropout": 0.5}, trainable_layers=1)
    built = build_recommender(config, vocab_size=VOCAB_SIZE, pad_id=PAD_ID).train()
    before = {name: parameter.clone() for name, parameter in built.named_parameters()}
    optimizer = torch.optim.Adam(parameter_groups(built, OptimizerConfig(lr=0.1)))
    ids, mask = texts([5, 4], padded_to=5)
    hidden = built.news_encoder.backbone.language_model.embeddings
    assert not torch.equal(hidden(ids), hidden(ids))
    built.encode_news(ids, mask).square().sum().backward()
    optimizer.step()
    changed = {n for n, p in built.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= trained(built)
    assert any(name.startswith(f"{LANGUAGE_MODEL}encoder.layer.3.") for name in changed)


def test_groups_split_the_backbone_from_the_rest(model):
    set_trainable(model, 2)
    task = Task(model)
    config = OptimizerConfig(lr=1e-4, backbone_lr=1e-6, weight_decay=0.1)
    backbone, rest = parameter_groups(task, config)
    assert (backbone["name"], backbone["lr"]) == ("backbone", 1e-6)
    assert (rest["name"], rest["lr"]) == ("rest", 1e-4)
    assert backbone["weight_decay"] == rest["weight_decay"] == 0.1
    names = dict(task.named_parameters())
    for group in (backbone, rest):
        assert all(names[n] is p for n, p in zip(group["names"], group["params"], strict=True))
        order = [name for name in names if name in set(group["names"])]
        assert group["names"] == order
    assert all(name.startswith(f"model.{LANGUAGE_MODEL}") for name in backbone["names"])
    assert set(backbone["names"]) | set(rest["names"]) == trained(task)
    assert {"projections.layers.0.weight", "model.user_encoder.pad_doc"} <= set(rest["names"])


def test_the_backbone_takes_the_common_rate_where_it_has_none(model):
    groups = parameter_groups(model, OptimizerConfig(lr=3e-4))
    assert [group["lr"] for group in groups] == [3e-4, 3e-4]
    assert "news_encoder.backbone.rel_pos_bias.weight" in groups[0]["names"]


def test_a_group_without_parameters_is_left_out(model):
    set_trainable(model, 0)
    assert [group["name"] for group in parameter_groups(model, OptimizerConfig())] == ["rest"]


def test_nothing_to_train_is_an_error(model):
    with pytest.raises(ModelError, match="no parameter is left to train"):
        parameter_groups(model.requires_grad_(False), OptimizerConfig())


def test_counts(model):
    layer = nn.Linear(3, 2)
    assert count_parameters(layer) == 8
    layer.bias.requires_grad_(False)
    assert count_parameters(layer, trainable_only=True) == 6
    tied = nn.ModuleList([layer, layer])
    assert count_parameters(tied) == 8


def test_projections_are_xavier_with_zero_bias_one_a_teacher():
    torch.manual_seed(0)
    projections = TeacherProjections([8, 300], 200)
    first, second = projections([torch.randn(2, 3, 8), torch.randn(5, 300)])
    assert first.shape == (2, 3, 200) and second.shape == (5, 200)
    assert all(layer.bias.abs().max() == 0 for layer in projections.layers)
    bound = (6 / (300 + 200)) ** 0.5
    weight = projections.layers[1].weight
    assert bound * 0.98 < weight.abs().max() <= bound
    with pytest.raises(ValueError, match="zip"):
        projections([torch.randn(2, 8)])
