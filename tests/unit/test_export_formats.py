"""Formats of ``tnr export``: what each writes, what it refuses, and that a new one is a line."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import PAD_ID, texts, tiny_model
from helpers.world import TinyWorld, make_world
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from shards.tokenizer import load_tokenizer, tokenizer_sha256
from trainer.cli.main import main
from trainer.config.schema import BackboneConfig, LanguageModelConfig
from trainer.export.folder import Export, export_model, open_export
from trainer.export.formats import FORMATS
from trainer.export.formats.base import ExportFormat
from trainer.models.backbone import Backbone
from trainer.models.build import build_backbone, build_news_encoder, build_recommender
from trainer.tasks.mlm.masked import MaskedLanguageModel, new_head

FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "electra", "albert")
SIZES = {
    "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 70, "embedding_size": 8,
    "pad_token_id": PAD_ID,
}  # fmt: skip
DISTIL = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
VOCABULARY: dict[str, Any] = {"vocab_size": 100, "pad_id": PAD_ID}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("formats"))


def make_export(
    world: TinyWorld, folder: Path, kind: str, family: str = "bert", is_biased: bool = False
) -> Export:
    """Export a model of random weights, as a run would after some steps."""
    torch.manual_seed(0)
    sizes = {**SIZES, **DISTIL} if family == "distilbert" else SIZES
    AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(
        folder / "base"
    )
    backbone = BackboneConfig(
        name=str(folder / "base"),
        layers=None if family == "albert" else (0, 2),
        relative_position_bias=is_biased,
    )
    trained: dict[str, Any] = {"backbone": backbone, "trainable_layers": None}
    model: Any
    if kind == "language_model":
        part = build_backbone(LanguageModelConfig(**trained), **VOCABULARY)
        model = MaskedLanguageModel(part, new_head(part, backbone.name))
    else:
        make = build_recommender if kind == "recommender" else build_news_encoder
        model = make(replace(tiny_model(), **trained), **VOCABULARY)
    with torch.no_grad():  # biases are zero at first, and would hide that one is missing
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    shutil.rmtree(folder / "base")
    tokenizer = world.tokens.tokenizer_dir
    sha256 = tokenizer_sha256(load_tokenizer(tokenizer))
    return export_model(model, folder / "export", tokenizer, {"tokenizer_sha256": sha256})


def backbone_of(export: Export) -> Backbone:
    if export.is_language_model:
        name = BackboneConfig(name=str(export.folder))
        return build_backbone(LanguageModelConfig(backbone=name), **VOCABULARY).eval()
    found: Any = export.load_model()
    found = found.news_encoder if export.is_recommender else found
    return found.backbone


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def refused(capsys: pytest.CaptureFixture[str], export: Export, out: Path, *words: str) -> str:
    capsys.readouterr()
    code = main(["export", str(export.folder), "--out", str(out), *words])
    assert code == 1 and not list(out.parent.iterdir())
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", ["news_encoder", "recommender", "language_model"])
def test_the_default_is_a_copy_of_any_export(world: TinyWorld, tmp_path: Path, kind: str) -> None:
    export = make_export(world, tmp_path, kind)
    (export.folder / "onnx").mkdir()
    (export.folder / "onnx" / "notes.txt").write_text("mine")
    for number, words in enumerate(([], ["--format", "tnr"])):
        out = tmp_path / str(number)
        assert main(["export", str(export.folder), "--out", str(out), *words]) == 0
        assert contents(out) == contents(export.folder) and len(contents(out)) == 6
        assert open_export(out).info == export.info


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *(("news_encoder", family) for family in FAMILIES),
        ("recommender", "bert"),
        ("recommender", "roberta"),
        ("language_model", "bert"),
        ("language_model", "distilbert"),
        ("language_model", "albert"),
    ],
)
def test_transformers_opens_the_backbone_of_an_export(
    world: TinyWorld, tmp_path: Path, kind: str, family: str
) -> None:
    export, out = make_export(world, tmp_path, kind, family), tmp_path / "out"
    words = ["--out", str(out), "--format", "transformers"]
    assert main(["export", str(export.folder), *words]) == 0
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names

    plain, account = AutoModel.from_pretrained(out, output_loading_info=True)
    assert plain.config.model_type == family and plain.dtype == torch.float32
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [type(plain).__name__] and config["dtype"] == "float32"
    assert {name.split(".")[0] for name in account["missing_keys"]} <= {"pooler"}
    assert not account["unexpected_keys"] and not account["mismatched_keys"]
    ids, mask = texts([9, 4, 12], padded_to=12)
    expected = backbone_of(export)(ids, mask.bool())
    found = plain(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(found[mask.bool()], expected[mask.bool()])

    wanted = load_tokenizer(world.tokens.tokenizer_dir)("Two words, and three more").input_ids
    assert AutoTokenizer.from_pretrained(out)("Two words, and three more").input_ids == wanted

    name = BackboneConfig(name=str(out))
    ours = build_backbone(LanguageModelConfig(backbone=name), **VOCABULARY).eval()
    assert torch.equal(ours(ids, mask.bool()), expected)


def test_no_code_or_path_of_ours_is_in_a_transformers_folder(
    world: TinyWorld, tmp_path: Path
) -> None:
    export, out = make_export(world, tmp_path, "recommender"), tmp_path / "out"
    assert main(["export", str(export.folder), "--out", str(out), "--format", "transformers"]) == 0
    assert str(tmp_path).encode() not in b"".join(contents(out).values())
    program = (
        "import sys\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        f"model, words = (A.from_pretrained({str(out)!r}) for A in (AutoModel, AutoTokenizer))\n"
        "states = model(**words(['Two words'], return_tensors='pt')).last_hidden_state\n"
        "ours = [m for m in sys.modules if m.split('.')[0] in ('trainer', 'shards')]\n"
        "print(states.shape[-1], ours)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "16 []\n", done.stderr


@pytest.mark.parametrize("kind", ["news_encoder", "recommender", "language_model"])
def test_a_backbone_with_a_bias_table_is_refused_by_transformers_format_alone(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    export, out = make_export(world, tmp_path, kind, is_biased=True), tmp_path / "outs" / "out"
    out.parent.mkdir()
    said = refused(capsys, export, out, "--format", "transformers")
    assert said.startswith(f"tnr: error: {export.folder} cannot be written with --format transf")
    assert "relative position bias" in said and "Use --format tnr" in said
    assert main(["export", str(export.folder), "--out", str(out)]) == 0


@pytest.mark.parametrize("kind", ["news_encoder", "language_model"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_edited_weights_are_refused_in_every_format_and_nothing_stays(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    export, out = make_export(world, tmp_path, kind), tmp_path / "outs" / "out"
    out.parent.mkdir()
    weights = export.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = refused(capsys, export, out, "--format", name)
    assert f"tnr: error: {weights} has sha256" in said and "export it again" in said


def test_an_older_export_whose_tokenizer_was_changed_is_refused(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older exports have neither a list of their files nor a seal over them."""
    export, outs = make_export(world, tmp_path, "news_encoder"), tmp_path / "outs"
    outs.mkdir()
    info = {k: v for k, v in export.info.items() if k not in ("files", "fingerprint")}
    (export.folder / "tnr.json").write_text(json.dumps(info))
    words = ["--format", "transformers"]
    whole = tmp_path / "whole"
    assert main(["export", str(export.folder), "--out", str(whole), *words]) == 0
    assert len(contents(whole)) == 4 and not (whole / "tnr.json").exists()
    tokenizer = export.folder / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["vocab"][5:7] = reversed(content["model"]["vocab"][5:7])
    tokenizer.write_text(json.dumps(content))
    said = refused(capsys, export, outs / "out", *words)
    assert "transformers reads another tokenizer" in said and "--format tnr" in said
    tokenizer.unlink()
    said = refused(capsys, export, outs / "out", *words)
    assert f"no tokenizer can be loaded from the folder '{export.folder}'" in said


def test_weights_that_transformers_reads_otherwise_are_refused(
    world: TinyWorld,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export, out = make_export(world, tmp_path, "news_encoder"), tmp_path / "outs" / "out"
    out.parent.mkdir()
    import trainer.models.loading as loading

    inner = loading.load_language_model

    def load(*arguments: Any) -> Any:
        model = inner(*arguments)
        torch.nn.init.zeros_(model.get_input_embeddings().weight)
        return model

    monkeypatch.setattr(loading, "load_language_model", load)
    said = refused(capsys, export, out, "--format", "transformers")
    assert "transformers reads other values of embeddings.word_embeddings.weight" in said


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_folder_that_exists_is_left_alone(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    export, out = make_export(world, tmp_path, "news_encoder"), tmp_path / "out"
    out.mkdir()
    assert main(["export", str(export.folder), "--out", str(out), "--format", name]) == 2
    assert f"{out} exists already" in capsys.readouterr().err and not list(out.iterdir())


class Toy(ExportFormat):
    """One format more."""

    summary = "a toy that counts entries"

    def problem(self, export: Export) -> str | None:
        return "toys are for news encoders" if export.is_recommender else None

    def write(self, export: Export, folder: Path) -> None:
        (folder / "toy.txt").write_text(f"{self.name} {len(export.info['files'])}")


def test_a_new_format_is_a_class_and_a_line(
    world: TinyWorld,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["export", str(make_export(world, tmp_path, "news_encoder").folder), "--format", "toy"]
    out = tmp_path / "outs" / "out"
    with pytest.raises(SystemExit) as stop:
        main([*words, "--out", str(out)])
    assert stop.value.code == 2
    said = capsys.readouterr().err.replace("'", "")
    assert "--format: invalid choice: toy (choose from tnr, transformers)" in said

    monkeypatch.setitem(FORMATS, "toy", f"{__name__}:Toy")
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "{tnr,transformers,toy}" in shown and "toy: a toy that counts entries" in shown
    assert "transformers: the language model alone" in shown and "(default tnr)" in shown
    assert main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: news_encoder of {words[1]}, format toy\n"
    assert contents(out) == {"toy.txt": b"toy 3"}
    shutil.rmtree(out)
    recommender = make_export(world, tmp_path / "other", "recommender")
    said = refused(capsys, recommender, out, "--format", "toy")
    assert said.endswith("cannot be written with --format toy: toys are for news encoders\n")
