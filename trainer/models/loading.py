"""Loading of exported models by folder, and of language models by name or folder; no pickles."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from shards import pretrained
from shards.errors import first_line
from shards.files import did_you_mean, did_you_mean_inside, read_json
from shards.pretrained_folder import check_folder
from trainer.errors import DataError, ModelError
from trainer.models.configuration import NewsEncoderConfig, RecommenderConfig
from trainer.models.layers import pooler_arguments
from trainer.models.news_encoder import NewsEncoder
from trainer.models.probe import check_padding
from trainer.models.recommender import Recommender

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_KINDS: dict[str, tuple[Any, Any]] = {
    NewsEncoderConfig.model_type: (NewsEncoderConfig, NewsEncoder),
    RecommenderConfig.model_type: (RecommenderConfig, Recommender),
}


def load_model(folder: str | Path) -> NewsEncoder | Recommender:
    """Load an exported model of either kind.

    Args:
        folder: Folder with ``config.json`` and ``model.safetensors``.

    Returns:
        The model in fp32 and in eval mode, as transformers returns it.

    Raises:
        ModelError: The folder is not an exported model, has only pickled weights, requires code of
            its own, or its weights are damaged, missing or left over; or its backbone's states
            depend on padding.
    """
    path = Path(folder)
    config_kind, kind = _kind_of(path)
    _check_safetensors(path)
    config = _loaded(path, config_kind)
    with _naming(path), pretrained.quiet(), pretrained.on_meta():
        pretrained.check_size(path, kind(config))
    model: NewsEncoder | Recommender = _loaded(path, kind)
    encoder = model.news_encoder if isinstance(model, Recommender) else model
    check_padding(encoder.backbone, str(path))
    return model


def load_news_config(folder: str | Path) -> NewsEncoderConfig:
    """Load the configuration of an export's news encoder; no weights are read.

    Raises:
        ModelError: The folder is not an exported model, or requires code of its own.
    """
    path = Path(folder)
    kind, _ = _kind_of(path)
    config = _loaded(path, kind)
    news: NewsEncoderConfig = config if kind is NewsEncoderConfig else config.news_config
    return news


def _kind_of(path: Path) -> tuple[Any, Any]:
    """Return the classes of an export's configuration and model."""
    model_type = str(_read_config(path).get("model_type"))
    if model_type not in _KINDS:
        raise ModelError(
            f"{path} holds a model of type {model_type!r}; expected an export of this project "
            f"({' or '.join(_KINDS)}). Name a language model by model.backbone.name instead"
        )
    return _KINDS[model_type]


def _loaded(path: Path, kind: Any) -> Any:
    with _naming(path), pretrained.quiet(path):
        return kind.from_pretrained(path, local_files_only=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn errors of loading an export into one line."""
    try:
        yield
    except (DataError, ModelError) as error:
        known = str(path) in str(error)
        raise ModelError(f"{'' if known else f'{path} cannot be loaded: '}{error}") from error
    except Exception as error:  # a nested configuration's family raises errors of all kinds
        raise ModelError(f"{path} cannot be loaded: {first_line(error)}") from error


def load_language_model_config(name: str) -> PreTrainedConfig:
    """Load a language model's configuration by folder or Hugging Face name, without a hub.

    Raises:
        ModelError: The name does not exist on this machine, requires code of its own, or is not an
            encoder.
    """
    try:
        config = pretrained.load_config(name)
    except DataError as error:
        raise ModelError(f"backbone.name {error}{_or_random(name)}") from error
    needed = ("num_hidden_layers", "hidden_size", "vocab_size")
    if config.is_encoder_decoder or not all(hasattr(config, key) for key in needed):
        raise ModelError(
            f"backbone.name {name!r} is of type {config.model_type!r}, which is not a text "
            "encoder: expected a model like BERT, RoBERTa, MPNet or DistilBERT"
        )
    return config


def load_language_model(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Load a language model with its weights, in fp32, without its heads and pooler.

    Args:
        name: A folder, or a Hugging Face name in the local cache.
        config: Configuration of the model, with any overrides.

    Returns:
        The model.

    Raises:
        ModelError: The weights are not on this machine, are pickled, or lack a part of the encoder.
    """
    try:
        _check_safetensors(pretrained.find_folder(name))
        model, info = pretrained.load_model(
            name, config, dtype=torch.float32, **pooler_arguments(config)
        )
    except DataError as error:
        raise ModelError(f"backbone.name {error}") from error
    absent = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
    # A pooler that could not be left out is not used; do not refuse a model because of it.
    absent = [key for key in absent if not key.startswith("pooler.")]
    if absent:
        raise ModelError(
            f"backbone {name!r} lacks {len(absent)} of the encoder's weights, among them "
            f"{absent[0]}: "
            "its config.json and its weights do not belong together"
        )
    return model


def read_tensor(folder: Path, key: str) -> torch.Tensor | None:
    """Read one tensor of a folder's ``model.safetensors``; None without the file or key."""
    weights = folder / _WEIGHTS[0]
    if not weights.is_file():
        return None
    with safe_open(weights, framework="pt") as tensors:
        return tensors.get_tensor(key) if key in tensors.keys() else None  # noqa: SIM118


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        if not path.is_dir():
            raise ModelError(
                f"there is no exported model at {path}: no such folder{did_you_mean(path)}"
            )
        hint = did_you_mean_inside(path, "export/config.json", "*/config.json")
        raise ModelError(f"{path} is not an exported model: it has no config.json{hint}")
    try:
        check_folder(path)
        return read_json(file, dict[str, Any])
    except DataError as error:
        raise ModelError(str(error)) from error


def _check_safetensors(path: Path) -> None:
    if any((path / name).is_file() for name in _WEIGHTS):
        return
    pickled = sorted(file.name for file in path.glob("*.bin")) + sorted(
        file.name for file in path.glob("*.pt*")
    )
    if pickled:
        raise ModelError(
            f"{path} has only pickled weights ({pickled[0]}), which can run code when they are "
            "loaded; expected "
            f"{_WEIGHTS[0]}. Convert them with transformers' save_pretrained on a machine where "
            "you trust them"
        )
    raise ModelError(f"{path} has no weights: expected {_WEIGHTS[0]}")


def _or_random(name: str) -> str:
    return "" if Path(name).is_dir() else ", or use `random`"
