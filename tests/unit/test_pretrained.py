"""Folders of models and tokenizers: whose code never runs, and what ends in one line."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.exports import rewrite
from helpers.planted import plant
from helpers.sets import make_tokens
from helpers.tiny_models import VOCAB_SIZE
from helpers.world import TinyWorld, make_world
from transformers import BertConfig, BertModel

from shards import pretrained
from shards.errors import DataError
from shards.tokenizer import load_tokenizer
from trainer.cli.main import main


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"), 12, 12)


@pytest.fixture(scope="module")
def plain(world: TinyWorld) -> Path:
    """A plain encoder with the tokenizer of the world's tokens."""
    folder = world.folder / "plain"
    shutil.copytree(world.tokens.tokenizer_dir, folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(
        BertConfig(**sizes, vocab_size=world.tokens.vocab_size, intermediate_size=16),
        add_pooling_layer=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def export(world: TinyWorld) -> Path:
    return Path(world.teacher("finetune", 1))


@pytest.fixture
def encoder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "encoder"))


@pytest.fixture
def exported(export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export, tmp_path / "export"))


def commands(world: TinyWorld, encoder: Path, exported: Path, out: Path) -> dict[str, list[str]]:
    """Every command that loads a model, a configuration or a tokenizer of a folder."""
    articles, clicks = str(world.articles.path), str(world.impressions.path)
    data = ["--data.articles", articles, "--run.dir", str(out / "run")]
    sets = ["--articles", articles]
    return {
        "tokenize": ["shards", "tokenize", articles, "--tokenizer", str(encoder)],
        "train": ["train", "post_train", *data, "--model.backbone.name", str(encoder)],
        "init": [
            "train", "finetune", *data, "--data.clicks", clicks, "--model.init", str(exported)
        ],
        "adopt": ["teachers", "adopt", str(encoder), "--out", str(out / "adopted")],
        "cache": ["teachers", "cache", "--stage", "1", *sets, "--models", str(exported)],
        "evaluate": ["evaluate", str(exported), *sets, "--clicks", clicks],
        "predict": ["predict", str(exported), *sets, "--clicks", clicks, "--out", str(out / "p")],
        "recommend": ["recommend", str(exported), *sets, "--history", "N1"],
        "plan": ["plan", "post_train", *data, "--run.copies.rule", "none",
                 "--model.backbone.name", str(encoder)],
        "plan init": [
            "plan", "finetune", *data, "--data.clicks", clicks, "--model.init", str(exported)
        ],
    }  # fmt: skip


COMMANDS = [
    "tokenize", "train", "init", "adopt", "cache", "evaluate", "predict", "recommend", "plan",
    "plan init",
]  # fmt: skip
_PLACES = {
    "encoder": [("config.json", ""), ("tokenizer_config.json", "")],
    "export": [("config.json", "news_encoder.backbone"), ("processor_config.json", "")],
}


def fails_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) in (1, 2)
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1, said
    return said[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_folder_is_neither_run_nor_asked_for(
    command: str,
    world: TinyWorld,
    plain: Path,
    export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    marker = tmp_path / "marker"
    exports = command in ("init", "cache", "evaluate", "predict", "recommend", "plan init")
    if command == "cache":
        export = Path(world.teacher("post_train", 2))
    for number, (file, place) in enumerate(_PLACES["export" if exports else "encoder"]):
        if command == "cache":
            place = place.removeprefix("news_encoder.")
        encoder = Path(shutil.copytree(plain, tmp_path / f"encoder{number}"))
        exported = Path(shutil.copytree(export, tmp_path / f"export{number}"))
        plant(exported if exports else encoder, marker, file, place)
        if exports:
            rewrite(exported, lambda info: None)
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
        words = commands(world, encoder, exported, tmp_path)[command]
        said = fails_in_one_line(words, capsys)
        assert "needs its own code (auto_map: " in said and file in said
        assert not marker.exists()


def test_a_family_that_only_the_folder_knows_is_not_run(encoder: Path, tmp_path: Path) -> None:
    plant(encoder, tmp_path / "marker", "config.json")
    content = json.loads((encoder / "config.json").read_text()) | {"model_type": "strange"}
    (encoder / "config.json").write_text(json.dumps(content))
    for load in (pretrained.load_config, pretrained.load_tokenizer):
        with pytest.raises(DataError, match="needs its own code"):
            load(encoder)
    assert not (tmp_path / "marker").exists()


def test_a_configuration_that_names_code_builds_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nested configuration may come from anywhere: also in memory nothing is asked."""
    asked = []

    def resolve(trusted: bool | None, *_: object, **__: object) -> bool:
        asked.append(trusted)
        return False

    monkeypatch.setattr("transformers.models.auto.auto_factory.resolve_trust_remote_code", resolve)
    config = BertConfig(vocab_size=VOCAB_SIZE, hidden_size=16, num_attention_heads=2)
    config.auto_map = {"AutoModel": "stranger.Model"}
    config._name_or_path = str(tmp_path)
    assert type(pretrained.new_model(config)) is BertModel
    assert asked == [False]


def test_kernels_of_a_hub_are_code_too(encoder: Path) -> None:
    content = json.loads((encoder / "config.json").read_text())
    content["attn_implementation"] = "someone/attention"
    (encoder / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"needs its own code \(attn_implementation: "):
        pretrained.load_config(encoder)


def test_an_empty_entry_wants_nothing(encoder: Path) -> None:
    content = json.loads((encoder / "config.json").read_text()) | {"auto_map": {}}
    (encoder / "config.json").write_text(json.dumps(content))
    assert pretrained.load_config(encoder).model_type == "bert"


DEEP = '{"a":' * 100_000
BOMBS = {
    "deep configuration": ("config.json", DEEP, "does not hold JSON"),
    "deep but closed": ("config.json", '{"a":' * 900 + "1" + "}" * 900, ""),
    "not an object": ("config.json", "[1]", ""),
    "deep tokenizer": ("tokenizer.json", DEEP, "no tokenizer can be loaded"),
    "deep tokenizer settings": ("tokenizer_config.json", DEEP, "does not hold JSON"),
    "cut weights": ("model.safetensors", "abc", "not a whole safetensors file"),
    "huge header": ("model.safetensors", b"\xff\xff\xff\x3f\0\0\0\0{}", "not a whole safetensors"),
    "deep header": (
        "model.safetensors",
        (2 * 9000 + 6).to_bytes(8, "little") + b'{"a":' + b"[" * 9000 + b"]" * 9000 + b"}",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("kind", ["encoder", "export"])
def test_files_that_are_not_what_they_should_be_end_in_one_line(
    bomb: str,
    kind: str,
    world: TinyWorld,
    encoder: Path,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, content, expected = BOMBS[bomb]
    if kind == "export" and file == "tokenizer.json":
        pytest.skip("the model of an export is loaded without its tokenizer")
    folder = encoder if kind == "encoder" else exported
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = fails_in_one_line(
        commands(world, encoder, exported, tmp_path)["adopt" if kind == "encoder" else "init"],
        capsys,
    )
    was_edited = kind == "export" and "was edited after the export" in said
    assert expected in said or was_edited


@pytest.mark.parametrize("thing", ["pipe", "device"])
@pytest.mark.parametrize(
    "file",
    ["config.json", "tokenizer.json", "vocab.txt", "model.safetensors", "chat_template.jinja"],
)
def test_pipes_and_devices_are_not_read(
    file: str,
    thing: str,
    world: TinyWorld,
    encoder: Path,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in (encoder, exported):
        (folder / file).unlink(missing_ok=True)
        if thing == "pipe":
            os.mkfifo(folder / file)
        else:
            (folder / file).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"{file}: it is not a regular file"):
        pretrained.load_tokenizer(encoder)
    for command in ("adopt", "init"):
        fails_in_one_line(commands(world, encoder, exported, tmp_path)[command], capsys)


@pytest.mark.parametrize(
    "place", ["pytorch_model.bin", "../other/model.safetensors", "/x.safetensors"]
)
def test_weights_elsewhere_or_pickled_are_not_followed(place: str, encoder: Path) -> None:
    (encoder / "model.safetensors").unlink()
    index = encoder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embeddings.word_embeddings.weight": place}}))
    with pytest.raises(DataError, match="expected a safetensors file beside it"):
        pretrained.load_model(encoder, BertConfig())


def test_a_link_to_nothing_and_other_folders_do_no_harm(encoder: Path) -> None:
    (encoder / "optimizer.bin").symlink_to(encoder / "gone")
    (encoder / "1_Pooling").mkdir()
    assert pretrained.load_tokenizer(encoder).is_fast


def test_a_mistyped_folder_is_told_at_once_with_the_near_name(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked a hub"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("asked a hub"))
    wrong = encoder.with_name("encodr")
    for name in (wrong, wrong / "deeper"):
        with pytest.raises(DataError, match=f"no such folder .*did you mean '{encoder}'"):
            pretrained.find_folder(name)
    monkeypatch.chdir(encoder.parent)
    with pytest.raises(DataError, match=r"did you mean 'encoder'.*hf download encodr"):
        pretrained.load_tokenizer("encodr")
    for name in ("", "a\0b", "x" * 5000, "some\nname", "a/b/c"):
        with pytest.raises(DataError, match="was not found"):
            pretrained.find_folder(name)


def test_a_name_is_looked_up_in_the_local_cache(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--some--encoder"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(encoder, repository / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert pretrained.find_folder("some/encoder") == repository / "snapshots" / "abc"
    assert pretrained.load_config("some/encoder").model_type == "bert"


def test_exports_follow_the_umask(world: TinyWorld, tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        export = Path(world.teacher("post_train", 9))
        assert main(["export", str(export), "--out", str(tmp_path / "copy")]) == 0
        make_tokens(world.articles, tmp_path / "tokenizer", vocab_size=150)
    finally:
        os.umask(previous)
    for folder in (export, tmp_path / "copy", tmp_path / "tokenizer"):
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()}
        assert set(modes.values()) == {"0o640"}, modes


def test_a_columns_tokenizer_that_was_changed_is_one_line(encoder: Path) -> None:
    file = encoder / "tokenizer.json"
    for content in ("{}", DEEP):
        file.write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json is not a fast tokenizer"):
            pretrained.load_backend(encoder)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="not a regular file"):
        pretrained.load_backend(encoder)


def test_a_library_that_panics_is_one_line(encoder: Path) -> None:
    """Rust's panics are no exceptions of Python's usual kind."""
    file = encoder / "tokenizer.json"
    text = file.read_text()
    damaged = text.replace('"precompiled_charsmap":"', '"precompiled_charsmap":":')
    damaged = damaged.replace('"precompiled_charsmap": "', '"precompiled_charsmap": ":')
    assert damaged != text
    file.write_text(damaged)
    for load in (pretrained.load_tokenizer, pretrained.load_backend):
        with pytest.raises(DataError, match="panicked"):
            load(encoder)


def test_a_setting_whose_type_shows_in_use_alone_is_one_line(encoder: Path) -> None:
    """It was a traceback at the first text that was tokenized."""
    path = encoder / "tokenizer_config.json"
    content = json.loads(path.read_text()) | {"model_max_length": "many"}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"encodes no text: .*'int' and 'str'"):
        load_tokenizer(encoder)


def test_a_tokenizer_whose_use_is_a_panic_of_its_library_is_one_line(encoder: Path) -> None:
    path = encoder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="tokenizer"):
        load_tokenizer(encoder)
