"""What a backbone is asked before it is trusted: padding, idle weights, masks, its own errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import VOCAB_SIZE, tiny_model
from helpers.world import make_world
from transformers import CONFIG_MAPPING

from trainer.errors import ModelError
from trainer.models.backbone import Backbone
from trainer.models.build import build_news_encoder
from trainer.models.configuration import NewsEncoderConfig
from trainer.models.layers import new_language_model
from trainer.models.loading import load_model
from trainer.models.news_encoder import NewsEncoder
from trainer.models.parameters import set_trainable
from trainer.models.probe import check_padding, freeze_idle
from trainer.tasks.build import build

BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
OWN_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
CONVOLUTION = {"conv_kernel_size": 3, "conv_act": "gelu", "relative_attention": True,
               "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}  # fmt: skip
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48}


def backbone(family: str, **changes: Any) -> Backbone:
    settings = BASE | changes
    if family == "xlnet":
        settings = {k: v for k, v in settings.items() if k not in (*OWN_NAMES, *BASE)} | {
            "vocab_size": VOCAB_SIZE, "pad_token_id": 0
        }  # fmt: skip
    if family == "fnet":
        del settings["num_attention_heads"]
    torch.manual_seed(0)
    model = new_language_model(CONFIG_MAPPING[family](**settings))
    return Backbone(model.config, False, model)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("bert", {}), ("roberta", {"pad_token_id": 1}), ("mpnet", {"pad_token_id": 1}),
     ("electra", {"embedding_size": 16}), ("deberta-v2", CONVOLUTION), ("xlnet", XLNET),
     ("longformer", {"attention_window": [8, 8]}), ("roformer", {}),
     ("luke", {"entity_vocab_size": 9, "entity_emb_size": 8}), ("big_bird", {"block_size": 4})],
)  # fmt: skip
def test_families_that_leave_padding_out_pass(family: str, changes: dict[str, Any]) -> None:
    check_padding(backbone(family, **changes), family)


@pytest.mark.parametrize(
    ("family", "changes"), [("fnet", {}), ("convbert", {"embedding_size": 16, "head_ratio": 2})]
)
def test_a_family_whose_states_depend_on_padding_is_refused(
    family: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=rf"'{family}' does not ignore padding: .* differ by "):
        check_padding(backbone(family, **changes), "some/encoder")


def test_every_way_to_a_model_asks_about_padding(tmp_path: Path) -> None:
    folder = tmp_path / "fnet"
    backbone("fnet").language_model.save_pretrained(folder)
    plain = tiny_model({"name": str(folder), "attention_dropout": None})
    with pytest.raises(ModelError, match="does not ignore padding"):
        build_news_encoder(plain, vocab_size=VOCAB_SIZE, pad_id=0)
    made = backbone("fnet").language_model
    NewsEncoder(NewsEncoderConfig(backbone=made.config, news_dim=4), made).save_pretrained(
        tmp_path / "export"
    )
    with pytest.raises(ModelError, match="does not ignore padding"):
        load_model(tmp_path / "export")


def test_a_probe_leaves_everything_as_it_was() -> None:
    model = backbone("bert").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    check_padding(model, "bert")
    assert freeze_idle(model) is None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("family", "changes", "idle", "count"),
    [("longformer", {"attention_window": [8, 8]}, "query_global", 12),
     ("luke", {"entity_vocab_size": 9, "entity_emb_size": 8}, "entity_embeddings", None),
     ("xlnet", XLNET, "seg_embed", None)],
)  # fmt: skip
def test_weights_that_play_no_part_are_frozen_and_named(
    family: str, changes: dict[str, Any], idle: str, count: int | None
) -> None:
    model = backbone(family, **changes)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    said = freeze_idle(model)
    assert said is not None and f"of the {family} backbone take no part" in said
    frozen = [name for name in trained if not model.get_parameter(name).requires_grad]
    assert any(idle in name for name in frozen)
    assert said.startswith(f"{count or len(frozen)} weights")
    states = model.train()(torch.tensor([[5, 6, 7]]), torch.ones(1, 3).bool())
    states.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert freeze_idle(model) is None


@pytest.mark.parametrize("layers", [None, 1, 2])
def test_what_a_family_keeps_fixed_stays_fixed(layers: int | None) -> None:
    assert backbone("roformer").fixed == ["encoder.embed_positions.weight"]
    language_model = backbone("bert").language_model
    table = language_model.get_parameter("embeddings.position_embeddings.weight")
    table.requires_grad_(False)
    model = Backbone(language_model.config, False, language_model)
    set_trainable(model, layers)
    assert not table.requires_grad
    assert any(p.requires_grad for p in model.parameters())


def test_a_run_says_what_it_freezes(tmp_path: Path) -> None:
    world = make_world(tmp_path, 12, 12)
    changes = {"attention_window": [8, 8], "vocab_size": world.tokens.vocab_size}
    folder = tmp_path / "longformer"
    backbone("longformer", **changes).language_model.save_pretrained(folder)
    for file in world.tokens.tokenizer_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = world.config("post_train", model__backbone__name=str(folder))
    task = build(config)
    assert any("weights of the longformer backbone take no part" in n for n in task.data.notes)


def test_errors_of_a_family_are_one_line_that_names_it() -> None:
    model = backbone("nystromformer", segment_means_seq_len=8, num_landmarks=4)
    with pytest.raises(ModelError, match=r"type 'nystromformer' cannot encode 1 texts of 7 tok"):
        check_padding(model, "some/encoder")
    with pytest.raises(ModelError, match=r"'nystromformer' cannot encode 2 texts of 5 tokens: Run"):
        model(torch.full((2, 5), 9), torch.ones(2, 5).bool())


def test_running_out_of_memory_is_not_the_familys_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone("bert")

    def refuse(**_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(model.language_model, "forward", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.full((2, 5), 9), torch.ones(2, 5).bool())


@pytest.mark.parametrize(
    ("family", "changes", "most"),
    [("bert", {}, 66), ("roberta", {"pad_token_id": 1}, 64), ("mpnet", {"pad_token_id": 1}, 64),
     ("luke", {"entity_vocab_size": 9, "entity_emb_size": 8, "pad_token_id": 1}, 64),
     ("longformer", {"attention_window": [8, 8], "pad_token_id": 1}, 64),
     ("data2vec-text", {"pad_token_id": 1}, 64), ("xlnet", XLNET, None)],
)  # fmt: skip
def test_the_longest_text_is_asked_of_the_model(
    family: str, changes: dict[str, Any], most: int | None
) -> None:
    model = backbone(family, **changes)
    assert model.max_tokens == most
    length = most or 70
    model(torch.full((1, length), 9), torch.ones(1, length).bool())
    if most is not None:
        with pytest.raises(ModelError, match=f"longer than the {most} that"):
            model(torch.full((1, length + 1), 9), torch.ones(1, length + 1).bool())
