"""Compiled and checkpointed layers: the same gradients, names and random numbers."""

import copy

import pytest
import torch
from torch import nn

from trainer.config.schema import BackboneConfig, ModelConfig
from trainer.errors import ModelError
from trainer.models.build import build_news_encoder
from trainer.models.execution import VARIANTS, prepare_layers
from trainer.models.layers import find_layers

MODES = {
    "checkpointed": {"compiled": False, "checkpointed": True},
    "compiled": {"compiled": True, "checkpointed": False},
    "both": {"compiled": True, "checkpointed": True},
}


def encoder(dropout: float = 0.0, layers: int = 3, trainable: int | None = None) -> nn.Module:
    """A small encoder with a relative position bias; the same weights every time."""
    torch.manual_seed(0)
    backbone = BackboneConfig(
        num_layers=layers,
        hidden_size=16,
        num_heads=2,
        intermediate_size=24,
        max_positions=40,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        relative_position_bias=True,
    )
    config = ModelConfig(backbone=backbone, news_dim=8, query_dim=6, trainable_layers=trainable)
    return build_news_encoder(config, vocab_size=50, pad_id=0).train()


def texts(num_texts: int, length: int, *, padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_texts * 100 + length)
    ids_UL = torch.randint(1, 50, (num_texts, length), generator=generator)
    mask_UL = torch.ones_like(ids_UL, dtype=torch.bool)
    if padded:
        mask_UL[:, length // 2 :] = False
    return ids_UL * mask_UL, mask_UL


def gradients(model: nn.Module, batch, seed: int = 5) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    model(*batch).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, wanted, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    whole = torch.stack([value.norm() for value in wanted.values()]).norm()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= tolerance * whole, name


@pytest.mark.parametrize("trainable", [None, 1])
def test_checkpointed_layers_give_the_same_gradients_with_dropout(trainable) -> None:
    """Masks of dropout are drawn again as they were; frozen layers stay without gradient."""
    plain, ours = encoder(0.3, trainable=trainable), encoder(0.3, trainable=trainable)
    prepare_layers(ours, **MODES["checkpointed"])
    batch = texts(4, 9, padded=True)
    wanted = gradients(plain, batch)
    found = gradients(ours, batch)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert found.keys() == wanted.keys()


def test_checkpointed_layers_keep_less() -> None:
    """Bytes that autograd saves between forward and backward."""
    kept = {}
    for name, changes in (("plain", None), ("ours", MODES["checkpointed"])):
        model = encoder()
        if changes:
            prepare_layers(model, **changes)
        saved: dict[int, int] = {}

        def pack(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(*texts(16, 32, padded=True))
        kept[name] = sum(saved.values())
        output.sum().backward()
    assert kept["ours"] < 0.5 * kept["plain"]


@pytest.mark.parametrize("mode", ["compiled", "both"])
def test_few_compilations_serve_many_layers_and_shapes(mode) -> None:
    """Twelve layers, frozen and trained, texts of many shapes, with padding and without."""
    torch._dynamo.reset()
    plain, ours = encoder(layers=12, trainable=6), encoder(layers=12, trainable=6)
    prepare_layers(ours, **MODES[mode])
    torch._dynamo.utils.counters.clear()
    for num_texts, length in ((3, 7), (5, 12), (2, 20), (8, 9)):
        batch = texts(num_texts, length, padded=True)
        assert_close(gradients(ours, batch), gradients(plain, batch), 1e-5)
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for num_texts, length in ((9, 8), (4, 31), (6, 17), (7, 5)):
        batch = texts(num_texts, length, padded=True)
        assert_close(gradients(ours, batch), gradients(plain, batch), 1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compilations
    assert 0 < compilations <= 9 < VARIANTS
    assert not torch._dynamo.utils.counters["graph_break"]


def test_compiled_and_checkpointed_layers_draw_dropout_again() -> None:
    """The gradient is the slope of what the forward pass computed with the same seed."""
    torch._dynamo.reset()
    model = encoder(0.4, layers=1)
    prepare_layers(model, **MODES["both"])
    batch = texts(4, 8, padded=True)
    found = gradients(model, batch)
    generator = torch.Generator().manual_seed(1)
    steps = {
        name: torch.randn(p.shape, generator=generator) * 1e-3
        for name, p in model.named_parameters()
        if name in found
    }

    def value(sign: float) -> float:
        moved = copy.deepcopy(dict(model.state_dict()))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(steps.get(name, torch.zeros(())), alpha=sign)
        torch.manual_seed(5)
        result = float(model(*batch).detach().double().square().sum())
        model.load_state_dict(moved)
        return result

    slope = sum(float((found[name] * step).double().sum()) for name, step in steps.items())
    assert (value(1.0) - value(-1.0)) / 2 == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("mode", MODES)
def test_names_copies_and_configuration_stay(mode) -> None:
    plain, ours = encoder(), encoder()
    prepare_layers(ours, **MODES[mode])
    for model in (ours, copy.deepcopy(ours)):
        assert list(model.state_dict()) == list(plain.state_dict())
        names = [name for name, _ in plain.named_parameters()]
        assert [name for name, _ in model.named_parameters()] == names
    assert ours.config.to_dict() == plain.config.to_dict()


def test_layers_that_transformers_does_not_checkpoint_are_refused() -> None:
    model = encoder()
    layers = find_layers(model.backbone.language_model)[1]
    layers[1] = nn.Identity()
    with pytest.raises(ModelError, match="not possible with a backbone of type 'bert'"):
        prepare_layers(model, **MODES["checkpointed"])
