"""Folders of strangers: entries that lead elsewhere, sizes, warnings, code."""

import itertools
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted import plant
from helpers.tiny_models import PAD_ID, VOCAB_SIZE, tiny_model
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPTNeoConfig,
    GPTNeoModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedConfig,
)

from shards import pretrained
from shards.errors import DamageError, DataError, first_line
from shards.tokenizer import load_tokenizer
from trainer.errors import ModelError
from trainer.models.build import build_recommender
from trainer.models.loading import load_language_model, load_language_model_config, load_model

SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "##s"]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A BERT with a vocabulary of two words."""
    folder = tmp_path / "encoder"
    BertModel(BertConfig(**SIZES), add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    build_recommender(tiny_model(), vocab_size=VOCAB_SIZE, pad_id=PAD_ID).save_pretrained(folder)
    return folder


def edit(file: Path, place: str = "", **changes: Any) -> None:
    """Change entries of an object inside a JSON file."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    inside = content
    for key in filter(None, place.split(".")):
        inside = inside[key]
    inside.update(changes)
    file.write_text(json.dumps(content))


def load(folder: Path) -> Any:
    """Load a language model as a run does."""
    return load_language_model(str(folder), load_language_model_config(str(folder)))


# ---- entries that lead elsewhere


def test_weights_are_not_taken_from_where_a_configuration_sends(
    encoder: Path, export: Path
) -> None:
    """transformers would read the named file, which the checks and checksums do not look at."""
    for folder, loading in ((encoder, load), (export, load_model)):
        shutil.copyfile(folder / "model.safetensors", folder / "other.safetensors")
        edit(folder / "config.json", transformers_weights="other.safetensors")
        with pytest.raises(ModelError, match="sends its reader elsewhere"):
            loading(folder)


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}),
        ("config.json", {"text_config": {"transformers_weights": "a.safetensors"}}),
        ("config.json", {"backbone": "someone/model"}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.json"]}),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
    ],
)
def test_entries_that_name_other_files_are_refused(
    file: str, entry: dict[str, Any], encoder: Path
) -> None:
    edit(encoder / file, **entry)
    for loading in (pretrained.load_config, pretrained.load_tokenizer):
        with pytest.raises(DataError, match=f"{file} sends its reader elsewhere"):
            loading(encoder)


def test_empty_entries_lead_nowhere(encoder: Path) -> None:
    edit(encoder / "tokenizer_config.json", init_inputs=[], special_tokens_map_file="/gone/x.json")
    edit(encoder / "config.json", transformers_weights=None, quantization_config=None)
    load(encoder)
    assert load_tokenizer(encoder)("rivers")["input_ids"] == [2, 5, 6, 3]


def test_adapters_and_quantised_weights_are_refused(encoder: Path) -> None:
    adapter = encoder / "adapter_config.json"
    adapter.write_text('{"base_model_name_or_path": "someone/model"}')
    with pytest.raises(ModelError, match=r"adapter_config\.json makes its folder an adapter"):
        load(encoder)
    adapter.unlink()
    edit(encoder / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(ModelError, match="belongs to quantised weights"):
        load(encoder)


# ---- sizes

HUGE = r"config\.json describes a model of [\d,]{17,} values, but the weights"
BOMBS = {
    "layers": ("num_hidden_layers", 10**9, r"num_hidden_layers 1,000,000,000, but the weights"),
    "labels": ("num_labels", 10**10, r"num_labels 10,000,000,000, but the weights"),
    "words": ("vocab_size", 10**12, HUGE),
    "width": ("hidden_size", 10**6, HUGE),
    "positions": ("max_position_embeddings", 10**12, HUGE),
    "wider than can be counted": ("hidden_size", 10**16, "encoder' is a folder, but no language"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_configuration_that_the_weights_cannot_hold_is_one_line(bomb: str, encoder: Path) -> None:
    key, value, expected = BOMBS[bomb]
    edit(encoder / "config.json", **{key: value})
    with pytest.raises(ModelError, match=expected) as caught:
        load(encoder)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", [name for name in BOMBS if name != "labels"])
def test_an_export_that_its_weights_cannot_hold_is_one_line(bomb: str, export: Path) -> None:
    key, value, expected = BOMBS[bomb]
    if bomb == "wider than can be counted":
        expected = "export cannot be loaded: no model of type 'bert' can be built"
    edit(export / "config.json", "news_encoder.backbone", **{key: value})
    with pytest.raises(ModelError, match=expected) as caught:
        load_model(export)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(60)
def test_a_count_of_layers_is_looked_at_before_a_configuration_is_made(tmp_path: Path) -> None:
    """Some configurations list their layers: with a tokenizer alone there are no weights."""
    ModernBertConfig(**SIZES).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", num_hidden_layers=10**9, layer_types=None)
    for loading in (pretrained.load_config, pretrained.load_tokenizer):
        with pytest.raises(DamageError, match="the weights beside it are 0 tensors"):
            loading(tmp_path)


def test_what_is_not_stored_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """Shared layers, labels, positions without a table, a pooler, half precision, masks."""
    models = {
        "albert": AlbertModel(AlbertConfig(**SIZES | {"num_hidden_layers": 30}, embedding_size=8)),
        "labels": BertForSequenceClassification(BertConfig(**SIZES, num_labels=5000)),
        "masks": GPTNeoModel(
            GPTNeoConfig(
                vocab_size=VOCAB_SIZE, hidden_size=16, num_heads=2, num_layers=2,
                attention_types=[[["global", "local"], 1]], max_position_embeddings=512,
            )
        ),
        "pooler": BertModel(BertConfig(**SIZES), add_pooling_layer=False).bfloat16(),
        "rotary": ModernBertModel(
            ModernBertConfig(
                **SIZES, max_position_embeddings=1 << 20,
                pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
            )
        ),
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        if name == "labels":
            edit(tmp_path / name / "config.json", num_labels=5000)
        assert load(tmp_path / name).config.num_hidden_layers in (2, 30)


def test_looking_at_sizes_leaves_the_random_numbers(encoder: Path) -> None:
    config = pretrained.load_config(encoder)
    before = torch.get_rng_state()
    with pretrained.on_meta():
        model = pretrained.new_model(config)
        torch.rand(1, device="cpu")
    assert {value.device.type for value in model.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


# ---- what transformers says


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that transformers says whenever it loads something."""
    texts: list[str] = []

    def saying(function: Any) -> Any:
        def said(*args: Any, **kwargs: Any) -> Any:
            for text in texts:
                logging.getLogger("transformers.somewhere").warning(text)
                warnings.warn(text, stacklevel=1)
            return function(*args, **kwargs)

        return said

    for kind in (AutoConfig, AutoTokenizer, AutoModel):
        monkeypatch.setattr(kind, "from_pretrained", saying(kind.from_pretrained))
    return texts


class Heard(logging.Handler):
    """What reaches whoever listens to transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_warnings_of_transformers_are_not_shown(
    encoder: Path, speaking: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(encoder / "config.json", eos_token_id=10**6)  # which transformers warns of by itself
    speaking.append("something in /a/path\nis odd")
    heard = Heard()
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "handlers", [heard])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_tokenizer(encoder)
        load(encoder)
    assert (heard.texts, caught) == ([], [])
    logger.warning("afterwards")
    assert heard.texts == ["afterwards"]


def test_what_changes_tokens_or_positions_is_said_in_one_line_once(
    encoder: Path, speaking: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    speaking.append("uses the byte fallback option\nwhich is not implemented")
    load_tokenizer(encoder)
    load_tokenizer(encoder)
    assert capfd.readouterr().err == (
        f"tnr: note: {encoder}: transformers says: uses the byte fallback option\n"
    )


# ---- what an error tells


def chained(*errors: Exception) -> Exception:
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("plain\nmore"), "ValueError: plain"),
        (ValueError("\n\n  second\nthird"), "ValueError: second"),
        (ValueError("wrong field:\n    expected int"), "ValueError: wrong field: expected int"),
        (ValueError("one of:\n(a) x,\n(b) y\nz"), "ValueError: one of: (a) x, (b) y"),
        (ValueError(), "ValueError: no message"),
        (
            chained(OSError("cannot read"), ValueError("header too large")),
            "OSError: cannot read, because of ValueError: header too large",
        ),
        (chained(OSError("cannot: is odd"), ValueError("is odd")), "OSError: cannot: is odd"),
        (
            chained(OSError("a"), ValueError(""), KeyError("b")),
            "OSError: a, because of ValueError: no message, because of KeyError: 'b'",
        ),
    ],
)  # fmt: skip
def test_an_error_is_told_by_its_telling_line(error: Exception, told: str) -> None:
    assert first_line(error) == told


def test_an_error_without_a_message_is_told_by_what_it_was_met_in() -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            raise ValueError("the cause")
        except ValueError:
            raise RuntimeError  # noqa: B904
    assert first_line(caught.value).endswith("because of ValueError: the cause")
    assert len(first_line(ValueError("x" * 9999))) == 400


def test_a_value_of_another_type_is_named_with_what_was_expected(encoder: Path) -> None:
    edit(encoder / "config.json", hidden_size="wide")
    with pytest.raises(
        DataError, match=r"'hidden_size': TypeError: Field .* expected int, got str"
    ):
        pretrained.load_config(encoder)


# ---- tokenizers without words


@pytest.mark.parametrize("kind", ["BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer",
                                  "T5Tokenizer", "MPNetTokenizer", "GPT2Tokenizer"])  # fmt: skip
def test_a_tokenizer_without_a_vocabulary_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(DataError, match=f"{tmp_path} has no vocabulary: it lacks .*tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("words", [[], WORDS[:5]])
def test_a_vocabulary_of_special_tokens_alone_is_refused(words: list[str], encoder: Path) -> None:
    (encoder / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(DataError, match=f"vocab.txt of {encoder} has no words beside special tok"):
        load_tokenizer(encoder)
    (encoder / "vocab.txt").write_text("\n".join(WORDS))
    assert load_tokenizer(encoder)("river")["input_ids"] == [2, 5, 3]


# ---- code of strangers


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only what is handed to transformers stands between a folder's code and this process."""
    monkeypatch.setattr(pretrained, "check_folder", lambda folder: None)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    yield


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("what", ["config", "tokenizer", "model", "new model"])
def test_transformers_is_told_to_run_no_code(what: str, encoder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    plant(encoder, marker, "config.json")
    plant(encoder, marker, "tokenizer_config.json")
    edit(encoder / "config.json", model_type="strange")
    edit(encoder / "tokenizer_config.json", tokenizer_class="StrangeTokenizer")
    config = PreTrainedConfig.from_pretrained(encoder)
    loads = {
        "config": lambda: pretrained.load_config(encoder),
        "tokenizer": lambda: pretrained.load_tokenizer(encoder),
        "model": lambda: pretrained.load_model(encoder, config),
        "new model": lambda: pretrained.new_model(config),
    }
    with pytest.raises(DataError, match=r"custom code|Unrecognized|trust_remote_code"):
        loads[what]()
    assert not marker.exists()


def test_every_call_of_transformers_says_that_no_code_is_trusted(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a family is known, transformers would not ask: only the argument can be looked at."""
    trusted: list[tuple[str, Any]] = []

    def noting(called: str, original: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            trusted.append((called, kwargs.get("trust_remote_code")))
            return original(*args, **kwargs)

        return noted

    for kind in (AutoConfig, AutoTokenizer, AutoModel):
        for method in ("from_pretrained", "from_config"):
            if hasattr(kind, method):
                called = f"{kind.__name__}.{method}"
                monkeypatch.setattr(kind, method, noting(called, getattr(kind, method)))
    config = pretrained.load_config(encoder)
    pretrained.load_tokenizer(encoder)
    pretrained.load_model(encoder, config)
    pretrained.new_model(config)
    assert {called for called, _ in trusted} == {
        "AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained",
        "AutoModel.from_pretrained", "AutoModel.from_config",
    }  # fmt: skip
    assert all(told is False for _, told in trusted)
