"""A backbone below and above a cut: the same states as transformers' own, whatever the family."""

import gc
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from trainer.errors import ModelError
from trainer.models.backbone import Backbone
from trainer.models.configuration import NewsEncoderConfig
from trainer.models.execution import checkpoint_activations
from trainer.models.layers import find_layers
from trainer.models.news_encoder import NewsEncoder
from trainer.models.parameters import set_trainable
from trainer.monitor.flops import text_flops

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
FAMILIES: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "roberta": lambda: transformers.RobertaConfig(**SIZES),
    "mpnet": lambda: transformers.MPNetConfig(**SIZES),
    # Embeddings of another width than the layers, and a Linear between them.
    "electra": lambda: transformers.ElectraConfig(embedding_size=8, **SIZES),
    # Layers are asked for their kind of attention; a norm follows the last one.
    "modernbert": lambda: transformers.ModernBertConfig(
        global_attn_every_n_layers=2,
        local_attention=4,
        **{f"{name}_token_id": 2 for name in ("bos", "eos", "cls", "sep")},
        **SIZES,
    ),
    # Layers return a tuple that ends in None.
    "deberta": lambda: transformers.DebertaConfig(
        relative_attention=True, pos_att_type=["p2c"], max_relative_positions=20, **SIZES
    ),
}


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Four texts of up to 9 tokens."""
    mask_UL = torch.arange(9) < torch.tensor([9, 4, 7, 2])[:, None]
    ids_UL = torch.randint(5, 60, mask_UL.shape, generator=torch.Generator().manual_seed(1))
    return ids_UL.masked_fill(~mask_UL, 1), mask_UL


def backbone_of(family: str, *, bias: bool = False) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(FAMILIES[family](), bias).eval()
    if backbone.rel_pos_bias is not None:
        nn.init.normal_(backbone.rel_pos_bias.weight)
    # Biases and norms start as zeros and ones; moved, so that one that is left out is seen.
    for parameter in backbone.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return backbone


@pytest.mark.parametrize("num_below", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_below_gives_the_hidden_states_and_above_the_last_ones(family: str, num_below: int) -> None:
    backbone = backbone_of(family)
    ids_UL, mask_UL = texts()
    reference = backbone.language_model(
        input_ids=ids_UL, attention_mask=mask_UL, output_hidden_states=True
    )
    backbone.cut(num_below)
    below_ULD = backbone.below(ids_UL, mask_UL)
    if num_below < 3:  # what follows the last layer may be normalised
        expected = reference.hidden_states[num_below]
        torch.testing.assert_close(below_ULD[mask_UL], expected[mask_UL], rtol=0, atol=1e-6)
    stored_ULD = below_ULD.masked_fill(~mask_UL[:, :, None], 0.0)
    above_ULD = backbone.above(stored_ULD, mask_UL)
    whole_ULD = reference.last_hidden_state
    torch.testing.assert_close(above_ULD[mask_UL], whole_ULD[mask_UL], rtol=0, atol=1e-6)
    # Nothing is left of the cut in what follows.
    again = backbone.language_model(input_ids=ids_UL, attention_mask=mask_UL)
    assert torch.equal(again.last_hidden_state, whole_ULD)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers_below_and_above_the_cut_run_alone_and_keep_nothing(family: str) -> None:
    """Of a long corpus, what stays of one batch would soon be all memory."""
    backbone = backbone_of(family)
    backbone.cut(2)
    called: list[int] = []
    _, layers = find_layers(backbone.language_model)
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs, number=number: called.append(number))
        for number, layer in enumerate(layers)
    ]
    ids_UL, mask_UL = texts()
    states_ULD = backbone.below(ids_UL, mask_UL)
    assert called == [0, 1]
    backbone.above(states_ULD, mask_UL)
    assert called == [0, 1, 2]
    for hook in hooks:
        hook.remove()
    assert not any(module._forward_hooks for module in backbone.modules())
    kept = weakref.ref(states_ULD)
    del states_ULD
    gc.collect()
    assert kept() is None


def test_cut_models_keep_their_names_and_their_mode() -> None:
    backbone = backbone_of("bert")
    names = list(backbone.state_dict())
    modules = list(backbone.named_modules())
    backbone.train().cut(2)
    assert list(backbone.state_dict()) == names and list(backbone.named_modules()) == modules
    assert all(module.training for module in backbone.modules())


@pytest.mark.parametrize(
    ("family", "bias", "checkpointed"),
    [("bert", True, False), ("mpnet", False, False), ("roberta", True, True)],
)
def test_gradients_from_states_are_those_of_the_whole(
    family: str, bias: bool, checkpointed: bool
) -> None:
    torch.manual_seed(0)
    encoder = NewsEncoder(
        NewsEncoderConfig(
            backbone=FAMILIES[family](), query_dim=6, news_dim=10, relative_position_bias=bias
        )
    ).eval()
    table = encoder.backbone.rel_pos_bias
    if table is not None:
        nn.init.normal_(table.weight)
    set_trainable(encoder, 2)
    if checkpointed:
        checkpoint_activations(encoder.train())
        for dropout in (m for m in encoder.modules() if isinstance(m, nn.Dropout)):
            dropout.p = 0.0
        for attention in (m for m in encoder.modules() if hasattr(m, "dropout_prob")):
            attention.dropout_prob = 0.0
    encoder.backbone.cut(1)
    ids_UL, mask_UL = texts()

    def gradients(vectors_UE: torch.Tensor) -> dict[str, torch.Tensor]:
        encoder.zero_grad()
        (vectors_UE * torch.arange(10.0)).sum().backward()
        return {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}

    expected = gradients(encoder(ids_UL, mask_UL))
    with torch.no_grad():
        states_ULD = encoder.backbone.below(ids_UL, mask_UL)
    found = gradients(encoder.encode_states(states_ULD, mask_UL))
    assert found.keys() == expected.keys()
    assert any(".layer.1." in name for name in found)
    assert not any(".layer.0." in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_trained_layers_keep_their_dropout() -> None:
    encoder = NewsEncoder(NewsEncoderConfig(backbone=FAMILIES["bert"](), news_dim=10))
    encoder.backbone.cut(2)
    ids_UL, mask_UL = texts()
    encoder.train()
    with torch.no_grad():
        states_ULD = encoder.backbone.below(ids_UL, mask_UL)
        first, second = (encoder.encode_states(states_ULD, mask_UL) for _ in range(2))
        assert not torch.equal(first, second)
        encoder.eval()
        assert torch.equal(*(encoder.encode_states(states_ULD, mask_UL) for _ in range(2)))


def test_layers_below_are_not_counted_as_work() -> None:
    encoder = NewsEncoder(NewsEncoderConfig(backbone=FAMILIES["bert"](), news_dim=10))
    set_trainable(encoder, 1)
    whole = text_flops(encoder)
    encoder.backbone.cut(2)
    cut = text_flops(encoder)
    assert whole is not None and cut is not None
    matrices = 4 * 16 * 16 + 2 * 16 * 24
    assert whole.per_token - cut.per_token == 2 * 2 * matrices
    assert whole.per_square - cut.per_square == 2 * 4 * 16


class Crosswise(transformers.BertModel):
    """Adds what the first layer returned to what the last one does."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._kept: list[torch.Tensor] = []

    def forward(self, *given: Any, **named: Any) -> Any:
        hook = self.encoder.layer[0].register_forward_hook(
            lambda module, inputs, output: self._kept.append(output)
        )
        output = super().forward(*given, **named)
        hook.remove()
        output.last_hidden_state = output.last_hidden_state + self._kept.pop()
        self._kept.clear()
        return output


def test_families_whose_layers_pass_on_more_are_refused() -> None:
    config = FAMILIES["bert"]()
    crosswise = Backbone(config, False, Crosswise(config, add_pooling_layer=False).eval())
    with pytest.raises(ModelError, match=r"'bert' cannot be cut .*(halves|more than states)"):
        crosswise.cut(2)
    roformer = transformers.RoFormerConfig(embedding_size=16, **SIZES)
    with pytest.raises(ModelError, match=r"'roformer' cannot be cut .*more than their states"):
        Backbone(roformer, False).cut(1)
    with pytest.raises(ModelError, match="no list of 3 layers"):
        Backbone(transformers.AlbertConfig(**SIZES), False).cut(1)
    for num_below in (0, 4):
        with pytest.raises(ModelError, match=f"3 layers cannot be cut above {num_below}"):
            backbone_of("bert").cut(num_below)
