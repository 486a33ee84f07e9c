"""Masked language modelling: against transformers' own models, and what is masked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import flat
from helpers.launch import metrics
from helpers.sets import make_articles, make_impressions, make_tokens
from helpers.tiny_models import PAD_ID, texts, tiny_backbone
from helpers.world import TinyWorld, make_world
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from shards.stream import Stream
from shards.tokenizer import load_tokenizer
from trainer.cli.main import main
from trainer.config.schema import LanguageModelConfig
from trainer.errors import ConfigError, ModelError
from trainer.export.folder import load_export
from trainer.models.build import build_backbone
from trainer.tasks.build import build
from trainer.tasks.mlm.masked import MaskedLanguageModel, MaskedTexts, MlmModule, new_head
from trainer.tasks.texts import SubBatch, Texts

FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "electra", "albert")
SIZES = {
    "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 70, "embedding_size": 16,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "dropout": 0.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("mlm"), num_articles=60)


def masked_model(folder: Path, family: str) -> tuple[Any, MaskedLanguageModel]:
    """Transformers' model of a family, saved, and ours from its folder."""
    torch.manual_seed(0)
    sizes = {**SIZES, **DISTIL} if family == "distilbert" else SIZES
    sizes = sizes | {"attention_dropout": 0.0, "pad_token_id": PAD_ID}
    theirs = AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():  # biases are zero at first, and would hide that one is not taken over
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    theirs.save_pretrained(folder)
    config = LanguageModelConfig(backbone=tiny_backbone(name=str(folder)))
    config = replace(config, backbone=replace(config.backbone, hidden_dropout=None))
    config = replace(config, backbone=replace(config.backbone, attention_dropout=None))
    backbone = build_backbone(config, vocab_size=100, pad_id=PAD_ID)
    return theirs.eval(), MaskedLanguageModel(backbone, new_head(backbone, str(folder)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_own_model(tmp_path: Path, family: str) -> None:
    theirs, ours = masked_model(tmp_path / "model", family)
    ids, mask = texts([9, 5, 12], padded_to=12, seed=1)
    generator = torch.Generator().manual_seed(2)
    is_masked = (torch.rand(ids.shape, generator=generator) < 0.4) & mask.bool()
    wanted = torch.randint(5, 100, (int(is_masked.sum()),), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[is_masked] = wanted
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    places = is_masked.flatten().nonzero()[:, 0]
    batch = MaskedTexts(Texts((SubBatch(ids, mask),)), (places,), wanted)
    found = MlmModule(ours.eval())(batch)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-6, atol=1e-6)
    assert found["num_samples"] == 3
    expected.backward()
    found["loss"].backward()
    embeddings = ours.backbone.language_model.get_input_embeddings().weight
    torch.testing.assert_close(
        embeddings.grad, theirs.get_input_embeddings().weight.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_is_the_model_with_its_head(tmp_path: Path, family: str) -> None:
    theirs, ours = masked_model(tmp_path / "model", family)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.01)
    ours.save_pretrained(tmp_path / "out")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    ids, mask = texts([9, 5], padded_to=9)
    scores = again(input_ids=ids, attention_mask=mask).logits
    ours.eval()
    states = ours.backbone(ids, mask.bool())
    torch.testing.assert_close(scores[mask.bool()], ours(states[mask.bool()]))
    assert not torch.allclose(scores, theirs(input_ids=ids, attention_mask=mask).logits)
    plain = AutoModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask)[0], states)


def made(world: TinyWorld, **settings: Any) -> Any:
    config = world.config("mlm", **settings)
    return build(config)


def restored(data: Any, batch: Any) -> list[tuple[list[int], list[int]]]:
    """Original ids and places of masks, for each text of a micro-batch in its order."""
    found, at = [], 0
    for part, places in zip(batch.texts.parts, batch.places, strict=True):
        ids = part.inputs.clone().flatten()
        ids[places] = batch.wanted[at : at + len(places)]
        at += len(places)
        width = part.inputs.shape[1]
        for row, mask in enumerate(part.mask):
            own = [int(p) - row * width for p in places if row == int(p) // width]
            found.append((ids[row * width : row * width + int(mask.sum())].tolist(), own))
    order = range(len(found)) if batch.texts.place is None else batch.texts.place.tolist()
    return [found[place] for place in order]


def test_what_is_masked_is_drawn_by_article_and_epoch_whatever_it_is_batched_with(world) -> None:
    whole, parts = made(world, data__batch_tokens=0).data, made(world, data__batch_tokens=32).data
    texts_of: dict[tuple[int, int], Any] = {}
    for data, size in ((whole, 8), (parts, 6)):
        stream = Stream(data.order, size)
        for _ in range(25):  # more than two epochs
            rows = next(stream)
            batch = data.collate(rows).batch
            keys = zip(rows.rows.tolist(), rows.epochs.tolist(), strict=True)
            for key, text in zip(keys, restored(data, batch), strict=True):
                assert texts_of.setdefault(key, text) == text
    ids, _ = whole.texts.batch(np.arange(60))
    lengths = whole.texts.lengths(np.arange(60))
    tokenizer = load_tokenizer(world.tokens.tokenizer_dir)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for (row, _), (original, places) in texts_of.items():
        assert original == ids[row, : lengths[row]].tolist()
        usable = [place for place, token in enumerate(original) if token not in special]
        assert len(places) == max(1, round(0.15 * len(usable))) and set(places) <= set(usable)
    masks = [{row: p for (row, epoch), (_, p) in texts_of.items() if epoch == e} for e in (0, 1)]
    assert masks[0] != masks[1]


def test_eight_of_ten_are_masked_one_is_random_and_one_stays(world: TinyWorld) -> None:
    data = made(world, data__masked=1.0).data
    mask, text = data.mask, np.asarray([2, *data.mask.ordinary_ids[:30], 3])
    counts = np.zeros(3)
    random: set[int] = set()
    for row in range(400):
        places, now = mask.of(text, row, 0)
        assert places.tolist() == list(range(1, 31))
        is_mask, stays = now == mask.mask_id, now == text[places]
        random |= set(now[~is_mask & ~stays].tolist())
        counts += [is_mask.sum(), (~is_mask & ~stays).sum(), stays.sum()]
    shares = counts / counts.sum()
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.012)
    assert random <= set(mask.ordinary_ids.tolist()) and len(random) > 50


def test_a_run_learns_and_finetuning_starts_from_its_export(world: TinyWorld, tmp_path) -> None:
    run = tmp_path / "run"
    words = ["--run.dir", run, "--run.max_steps", 60, "--run.epochs", 100, "--optimizer.lr", 0.01]
    words += ["--optimizer.backbone_lr", 0.01, "--model.trainable_layers", "null"]
    settings = world.config("mlm")
    given = {
        "data.articles": settings.data.articles,
        "model.backbone.num_layers": 2,
        "model.backbone.hidden_size": 16,
        "model.backbone.num_heads": 2,
        "model.backbone.intermediate_size": 32,
        "model.backbone.relative_position_bias": True,
        "data.max_body_tokens": 20,
    }
    words += [word for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["train", "mlm", *map(str, words)]) == 0
    losses = list(metrics(run).values())
    assert losses[-1] < losses[0] - 0.5
    export = str(run / "export")
    with pytest.raises(ModelError, match=r"holds a language model .*--model\.backbone\.name"):
        load_export(export)
    config = world.config("finetune")
    backbone = replace(type(config.model.backbone)(), name=export)
    config = replace(config, model=replace(config.model, backbone=backbone))
    encoder = build(config).module.model.news_encoder
    theirs = AutoModelForMaskedLM.from_pretrained(export).bert.state_dict()
    for name, value in encoder.backbone.language_model.state_dict().items():
        torch.testing.assert_close(value, theirs[name])
    assert encoder.backbone.rel_pos_bias is not None, "the table came along"


def test_of_a_log_only_the_articles_that_it_names_are_read(world: TinyWorld, tmp_path) -> None:
    log = make_impressions(tmp_path / "log", world.articles, 3)
    clicks = str(log.path)
    data = made(world, data__clicks=clicks).data
    samples = list(world.articles)
    named = {number for sample in log for number in named_by(sample)}
    named = {number for number in named if samples[number]["body"]}
    stream = Stream(data.order, data.order.num_units)
    assert set(next(stream).rows.tolist()) == named and len(named) < 60
    assert data.notes[-1] == f"reading the {len(named)} articles that {clicks} names"
    assert data.fingerprint != made(world).data.fingerprint


def named_by(sample: dict[str, Any]) -> list[int]:
    return [*sample["history"], *sample["candidates"]]


def test_articles_without_a_text_are_left_out_and_counted(tmp_path: Path) -> None:
    pairs = [(f"Title {row}", f"the body of number {row}") for row in range(12)]
    made_of = make_articles(tmp_path / "set", texts=pairs + [("A title", "")] * 3)
    tokens = make_tokens(made_of, tmp_path / "tokenizer")
    data = made(TinyWorld(tmp_path, made_of, tokens, made_of)).data
    assert data.order.num_units == 12
    assert data.notes == ["3 articles are left out: they have no such text"]


def test_a_batch_is_pinned_moved_and_counted_as_any_other(world: TinyWorld) -> None:
    built = made(world)
    micro = built.data.collate(next(Stream(built.data.order, 4)))
    assert micro.counts.texts == 4
    assert {name.split(".")[0] for name in flat(micro.batch)} == {"texts", "places", "wanted"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data__masked": 0}, "data.masked is 0.0; expected more than 0"),
        ({"data__masked": 1.5}, "data.masked is 1.5; expected at most 1"),
        ({"data__news_text": ("body", "body")}, "name fields once"),
        ({"model__news_dim": 8}, "task mlm does not read model.news_dim"),
    ],
)
def test_mistakes_are_named(world: TinyWorld, settings: dict[str, Any], said: str) -> None:
    from trainer.config.validate import validate

    with pytest.raises(ConfigError, match=said):
        validate(world.config("mlm", **settings))
