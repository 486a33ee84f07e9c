"""Poolings and user encoders: a new one is a class and a line of its registry."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers.world import TINY_CLICKS, TinyWorld, make_world, read_by
from torch import Tensor, nn

from trainer.cli.main import main
from trainer.config.parts import make_part, with_parts
from trainer.config.ranges import Count, Positive
from trainer.engine.validation import Measured
from trainer.errors import ConfigError, DamageError, ModelError
from trainer.evaluate.evaluate import EvaluateOptions, make_ready
from trainer.evaluate.evaluators import EVALUATORS, Evaluator
from trainer.evaluate.pairs import open_click_log
from trainer.evaluate.scoring import score_impressions
from trainer.evaluate.sharded import Ranks
from trainer.export.folder import load_export
from trainer.export.info import sealed
from trainer.models.loading import load_model
from trainer.models.poolings import POOLINGS, Pooling
from trainer.models.user_encoders import USER_ENCODERS
from trainer.models.user_encoders.base import UserEncoder
from trainer.plan.sizes import bert_size, task_size
from trainer.recipes.init import settings_of_export
from trainer.recipes.load import from_settings, load_config
from trainer.tasks.build import build
from trainer.tasks.finetune.task import FinetuneConfig
from trainer.tasks.registry import all_settings


@dataclass(frozen=True, kw_only=True)
class Decayed(UserEncoder):
    """A learned map of the history's mean, in which a click weighs less the older it is."""

    decay_half: Positive = 2.0
    """Clicks after which a weight is half."""

    def layers(self, news_dim: int, query_dim: int) -> Mapping[str, nn.Module]:
        return {"map": nn.Linear(news_dim, news_dim, bias=False)}

    def pool(self, layers: Mapping[str, nn.Module], history_BHE: Tensor, mask_BH: Tensor) -> Tensor:
        age_BH = mask_BH.flip(1).cumsum(1).flip(1) - 1
        weight_BH = mask_BH * 0.5 ** (age_BH / self.decay_half)
        weight_BH = weight_BH / weight_BH.sum(1, keepdim=True)
        mapped: Tensor = layers["map"]((weight_BH.unsqueeze(-1) * history_BHE).sum(1))
        return mapped


@dataclass(frozen=True, kw_only=True)
class FirstFew(Pooling):
    """Mean of the first tokens, whatever they are."""

    few_tokens: Count = 2
    """How many."""
    fixed = ("few_tokens",)

    def build(self, width: int, query_dim: int) -> nn.Module:
        return _FirstFew(self.few_tokens)


class _FirstFew(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, states_ULD: Tensor, mask_UL: Tensor | None = None) -> Tensor:
        return states_ULD[:, : self.tokens].float().mean(1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(USER_ENCODERS, "decayed", f"{__name__}:Decayed")
    monkeypatch.setitem(POOLINGS, "first_few", f"{__name__}:FirstFew")
    all_settings.cache_clear()
    yield
    all_settings.cache_clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("parts"))


CHOSEN = {
    "model__user_encoder": "decayed", "model__decay_half": 3.0,
    "model__pooling": "first_few", "model__few_tokens": 3,
}  # fmt: skip


@pytest.fixture
def exported(world: TinyWorld) -> str:
    return world.teacher("finetune", 5, **CHOSEN)


def test_it_is_trained_exported_and_evaluated_as_its_formula_says(
    world: TinyWorld, exported: str
) -> None:
    export = load_export(exported)
    assert export.info["model_settings"]["decay_half"] == 3.0
    log = open_click_log(world.articles.path, world.impressions.path)
    ready = make_ready(export, log, EvaluateOptions(device="cpu"), Ranks())
    length = ready.history_length
    scored = score_impressions(ready.model, ready.news_NE, log.clicks, history_length=length)
    model = export.load_model()
    news_NE = ready.news_NE.astype(np.float32)
    weight_EE = model.user_encoder.map.weight.detach().numpy()
    cold_E = model.user_encoder.pad_doc.detach().numpy()
    expected = []
    for sample in world.impressions:
        clicked = [news_NE[row] for row in sample["history"][-length:]] or [cold_E]
        weights = 0.5 ** (np.arange(len(clicked))[::-1] / 3.0)
        user_E = weight_EE @ np.average(clicked, axis=0, weights=weights)
        expected.append(news_NE[sample["candidates"]] @ user_E)
    np.testing.assert_allclose(scored.scores, np.concatenate(expected), rtol=1e-4, atol=1e-5)


def test_the_pooling_takes_part(world: TinyWorld, exported: str) -> None:
    encoder = load_export(exported).load_model().news_encoder
    ids_UL = torch.tensor([[2, 7, 8, 9, 3]])
    with torch.no_grad():
        states_ULD = encoder.backbone(ids_UL, torch.ones_like(ids_UL).bool())
        expected = encoder.dense(states_ULD[:, :3].mean(1))
        torch.testing.assert_close(encoder(ids_UL, torch.ones_like(ids_UL)), expected)


def test_plans_count_its_parameters(world: TinyWorld) -> None:
    config = world.config("finetune", **CHOSEN)
    built = build(config)
    vocabulary = built.module.model.config.news_config.language_model.vocab_size
    size = task_size(config, bert_size(config.model.backbone, vocabulary))
    assert size.parameters == sum(p.numel() for p in built.module.parameters())


def test_a_run_from_its_export_takes_its_settings(world: TinyWorld, exported: str) -> None:
    needed = ["--data.articles", str(world.articles.path), "--run.dir", str(world.folder / "r")]
    needed += ["--data.clicks", str(world.impressions.path), "--model.init", exported]
    config = load_config("finetune", needed)
    assert (config.model.user_encoder, config.model.decay_half) == ("decayed", 3.0)
    assert (config.model.pooling, config.model.few_tokens) == ("first_few", 3)
    # Of these, the pooling alone says that weights hang on it.
    assert build(load_config("finetune", [*needed, "--model.decay_half", "1"])) is not None
    with pytest.raises(ModelError, match=r"model\.few_tokens is 2, but .* was made with 3"):
        build(load_config("finetune", [*needed, "--model.few_tokens", "2"]))


NEEDED = ["--data.articles", "a", "--data.clicks", "c", "--run.dir", "r"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.decay_half", "1"],
         "model.user_encoder additive does not read model.decay_half, a setting of decayed"),
        (["--model.user_encoder", "decayed", "--model.user_heads", "2"],
         "model.user_encoder decayed does not read model.user_heads, a setting of nrms"),
        (["--model.user_encoder", "decayed", "--model.user_last_k", "2"],
         "model.user_encoder decayed does not read model.user_last_k, a setting of last_k_mean"),
        (["--model.user_encoder", "decayed", "--model.decay_half", "0"],
         "model.decay_half is 0.0; expected more than 0"),
        (["--model.user_encoder", "decayed", "--model.decay_half", "long"],
         "model.decay_half is 'long'; expected a number"),
        (["--model.user_encoder", "decay"],
         "model.user_encoder is 'decay'; expected one of 'additive', 'nrms', 'last_k_mean', "
         "'decayed'"),
        (["--model.pooling", "max"],
         "model.pooling is 'max'; expected one of 'attention', 'mean', 'cls', 'first_few'"),
    ],
)  # fmt: skip
def test_settings_of_other_parts_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("finetune", [*NEEDED, *words])
    assert said in str(error.value)
    assert "command line" in str(error.value)


def test_a_task_without_users_reads_no_user_encoder() -> None:
    settings = {"task": "post_train", "model.user_encoder": "nrms"}
    with pytest.raises(ConfigError, match=r"task post_train does not read model\.user_encoder"):
        from_settings(settings, where="here")


def test_the_help_lists_what_the_choice_brings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "finetune", "--help"]) == 0
    plain = " ".join(capsys.readouterr().out.split())
    assert "{additive,nrms,last_k_mean,decayed}" in plain
    assert "--model.decay_half" not in plain and "--model.user_heads" not in plain
    assert main(["train", "finetune", "--model.user_encoder", "decayed", "--help"]) == 0
    chosen = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "--model.decay_half FLOAT Clicks after which a weight is half. (default: 2.0)" in chosen
    assert "(default: decayed)" in chosen


@dataclass(frozen=True, kw_only=True)
class Wide(FirstFew):
    """A setting that the model section has too."""

    news_dim: Count = 3


def test_a_setting_of_two_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, "wide", f"{__name__}:Wide")
    with pytest.raises(TypeError, match="news_dim is a setting of two classes"):
        with_parts(FinetuneConfig, {"model.pooling": "wide"})


class _Lost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(3), persistent=False)


class _ReadsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = torch.tensor(0.5).item()


_made: list[int] = []


def _other_each_time() -> nn.Module:
    _made.append(1)
    return nn.Linear(16, 16 + len(_made))


@dataclass(frozen=True, kw_only=True)
class Wrong(Decayed):
    """Makes the layer that a test asks for."""

    asked: ClassVar = {"map": _Lost}

    def layers(self, news_dim: int, query_dim: int) -> Mapping[str, nn.Module]:
        return {name: make() for name, make in self.asked.items()}


@dataclass(frozen=True, kw_only=True)
class Reserved(Decayed):
    """A setting with a name that transformers' configurations have."""

    num_labels: Count = 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"map": _Lost}, "model.user_encoder wrong: the buffer weight would be missing in an"),
        ({"map": _ReadsItself}, "model.user_encoder wrong cannot be made on torch's meta device"),
        ({"map": _other_each_time}, "model.user_encoder wrong makes other layers when it is made"),
        ({"pad_doc": nn.Identity}, "user_encoder wrong: a layer cannot be called 'pad_doc'"),
        ({"a.b": nn.Identity}, "user_encoder wrong: a layer cannot be called 'a.b'"),
    ],
)
def test_layers_that_an_export_could_not_give_back_are_refused_before_training(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, asked: dict, said: str
) -> None:
    monkeypatch.setitem(USER_ENCODERS, "wrong", f"{__name__}:Wrong")
    monkeypatch.setattr(Wrong, "asked", asked)
    with pytest.raises(ModelError) as error:
        build(world.config("finetune", model__user_encoder="wrong"))
    assert said in str(error.value)


def test_a_setting_that_a_configuration_has_already_is_refused(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(USER_ENCODERS, "reserved", f"{__name__}:Reserved")
    with pytest.raises(ModelError, match="reserved has the setting num_labels, a name that"):
        build(world.config("finetune", model__user_encoder="reserved"))


def test_a_parameter_of_two_names_is_refused(world: TinyWorld, monkeypatch) -> None:
    def tied(self: Decayed, news_dim: int, query_dim: int) -> Mapping[str, nn.Module]:
        layer = nn.Linear(news_dim, news_dim, bias=False)
        return {"again": layer, "map": layer}

    monkeypatch.setattr(Decayed, "layers", tied)
    with pytest.raises(ModelError, match=r"again\.weight and map\.weight are one parameter"):
        build(world.config("finetune", **CHOSEN))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no.such.module:X", "No module named 'no'"),
        (f"{__name__}:Nothing", "no attribute 'Nothing'"),
        (f"{__name__}:_Lost", "is not a dataclass that derives from Part"),
        (__name__, "'broken'"),
    ],
)
def test_a_broken_line_of_a_registry_is_named(
    monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.setitem(USER_ENCODERS, "broken", line)
    all_settings.cache_clear()
    with pytest.raises(ConfigError, match="the registry's line 'broken'") as error:
        load_config("finetune", [*NEEDED, "--model.user_encoder", "broken"])
    assert said in str(error.value)


def test_a_fixed_setting_that_an_older_export_lacks_has_its_default(
    world: TinyWorld, tmp_path: Path
) -> None:
    folder = Path(world.teacher("finetune", 7, **CHOSEN))
    path = folder / "config.json"
    written = json.loads(path.read_text())
    del written["news_encoder"]["few_tokens"]
    path.write_text(json.dumps(written))
    (folder / "tnr.json").write_text(
        json.dumps(sealed(json.loads((folder / "tnr.json").read_text()), folder))
    )
    build(world.config("finetune", **CHOSEN | {"model__few_tokens": 2}, model__init=str(folder)))
    with pytest.raises(ModelError, match=r"model\.few_tokens is 3, but .* was made with 2"):
        build(world.config("finetune", **CHOSEN, model__init=str(folder)))


@dataclass(frozen=True, kw_only=True)
class Shown(Evaluator):
    """How many candidates a model is asked about, up to a setting of its own."""

    metrics = ("shown",)
    most_shown: Count = 10_000
    """Count up to so many."""

    def open(self, config, sources, data):
        return _Shown(self.most_shown, sources.articles.num_rows)


class _Shown:
    fingerprint = "shown"

    def __init__(self, most: int, rows: int) -> None:
        self.most, self.rows, self.notes = most, rows, [f"counts {most} at most"]

    def measure(self, model, distributed, *, on_part, progress=False) -> Measured:
        on_part(1)
        return Measured(values={"shown": min(self.most, self.rows)}, count=self.rows, unit="rows")


def test_an_evaluator_of_its_own_validates_a_run(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EVALUATORS, "shown", f"{__name__}:Shown")
    all_settings.cache_clear()
    words = {
        **read_by("finetune", TINY_CLICKS), "data.articles": world.articles.path,
        "data.clicks": world.impressions.path, "run.dir": tmp_path, "run.max_steps": 2,
        "validation.clicks": world.impressions.path, "validation.evaluator": "shown",
        "validation.metric": "shown", "validation.most_shown": 7,
    }  # fmt: skip
    given = [str(word) for key, value in words.items() for word in (f"--{key}", value)]
    assert main(["train", "finetune", *given]) == 0
    records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [r["valid/shown"] for r in records if "valid/shown" in r] == [7]
    said = r"validation\.metric is 'auc'; expected one of 'shown'"
    with pytest.raises(ConfigError, match=said):
        load_config("finetune", [*given, "--validation.metric", "auc"])


def test_a_metric_that_mind_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"metric is 'hit'; expected one of 'auc', 'mrr"):
        load_config("finetune", [*NEEDED, "--validation.clicks", "d", "--validation.metric", "hit"])
    with pytest.raises(ConfigError, match="evaluator is 'trec'; expected one of 'mind'"):
        load_config("finetune", [*NEEDED, "--validation.evaluator", "trec"])


def test_a_choice_of_one_run_is_not_one_of_the_next() -> None:
    with_parts(FinetuneConfig, {"model.user_encoder": "decayed"})
    assert not hasattr(with_parts(FinetuneConfig, {})().model, "decay_half")
    assert FinetuneConfig().model.user_encoder == "additive"


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"decay_half": -1.0}, "decay_half is -1.0; expected more than 0"),
     ({"decay_half": "x"}, "settings of decayed: Expected `float`, got `str`")],
)  # fmt: skip
def test_wrong_settings_of_a_part_are_named(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_part(USER_ENCODERS, "decayed", settings)


def test_older_exports_name_the_settings_of_every_user_encoder(world: TinyWorld) -> None:
    folder = Path(world.teacher("finetune", 6))
    path = folder / "config.json"
    written = json.loads(path.read_text())
    assert not {"user_heads", "user_last_k"} & written.keys()
    path.write_text(json.dumps(written | {"user_heads": 16, "user_last_k": 10}))
    assert load_model(folder).config.user_encoder == "additive"
    info = json.loads((folder / "tnr.json").read_text())
    (folder / "tnr.json").write_text(json.dumps(sealed(info, folder)))
    decided = settings_of_export(str(folder), reads_clicks=True)
    assert decided["model.user_encoder"] == "additive"
    assert not {"model.user_heads", "model.user_last_k"} & decided.keys()


def test_an_export_of_a_part_that_nobody_registered_is_refused(
    exported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(USER_ENCODERS, "decayed")
    with pytest.raises(DamageError, match="user_encoder: 'decayed' is unknown; known are additive"):
        load_export(Path(exported))
