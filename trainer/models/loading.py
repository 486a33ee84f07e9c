"""Loading: exported models by folder, language models by name or folder; never a pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from trainer.errors import ModelError
from trainer.models.configuration import NewsEncoderConfig, RecommenderConfig
from trainer.models.layers import pooler_arguments
from trainer.models.news_encoder import NewsEncoder
from trainer.models.recommender import Recommender
from trainer.models.strict import quiet

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load_model(folder: str | Path) -> NewsEncoder | Recommender:
    """Load an exported model, whichever of the two kinds it is.

    Args:
        folder: Folder with ``config.json`` and ``model.safetensors``.

    Returns:
        The model in fp32 and, as transformers leaves it, in eval mode.

    Raises:
        ModelError: The folder is no exported model, has only pickled weights, or its weights are
            damaged, missing or left over.
    """
    path = Path(folder)
    model_type = _read_config(path).get("model_type")
    kinds: dict[str, Any] = {
        NewsEncoderConfig.model_type: NewsEncoder,
        RecommenderConfig.model_type: Recommender,
    }
    if model_type not in kinds:
        raise ModelError(
            f"{path} holds a model of type {model_type!r}; expected an export of this project "
            f"({' or '.join(kinds)}). A language model is given as model.backbone.name instead"
        )
    _check_safetensors(path)
    with quiet():
        try:
            return kinds[model_type].from_pretrained(path, local_files_only=True)
        except ModelError:
            raise
        except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
            raise ModelError(f"{path} cannot be loaded: {_first_line(error)}") from error


def load_language_model_config(name: str) -> PreTrainedConfig:
    """Configuration of a language model by Hugging Face name or folder; the network is not asked.

    Raises:
        ModelError: There is none of that name on this machine, or it is no encoder.
    """
    with quiet():
        try:
            config = AutoConfig.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(_not_found(name, error)) from error
    if config.is_encoder_decoder or not hasattr(config, "num_hidden_layers"):
        raise ModelError(
            f"backbone.name {name!r} is of type {config.model_type!r}, which is no text encoder: "
            "expected "
            "a model like BERT, RoBERTa, MPNet or DistilBERT"
        )
    return config


def load_language_model(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A language model with its weights, in fp32, without its heads and pooler.

    Args:
        name: Hugging Face name, or a folder.
        config: Its configuration, with any overrides.

    Returns:
        The model.

    Raises:
        ModelError: The weights are not on this machine, are pickled, or miss a part of the encoder.
    """
    if Path(name).is_dir():
        _check_safetensors(Path(name))
    with quiet():
        try:
            model, info = AutoModel.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **pooler_arguments(config),
            )
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise ModelError(_not_found(name, error)) from error
    absent = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
    # A pooler that could not be left out is neither used nor worth refusing a model for.
    absent = [key for key in absent if not key.startswith("pooler.")]
    if absent:
        raise ModelError(
            f"backbone {name!r} lacks {len(absent)} of the encoder's weights, among them "
            f"{absent[0]}: "
            "its config.json and its weights do not belong together"
        )
    return model


def read_tensor(folder: Path, key: str) -> torch.Tensor | None:
    """One tensor of a folder's ``model.safetensors``, or None where it has no such file or key."""
    weights = folder / _WEIGHTS[0]
    if not weights.is_file():
        return None
    with safe_open(weights, framework="pt") as tensors:
        return tensors.get_tensor(key) if key in tensors.keys() else None  # noqa: SIM118


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        nested = path / "export" / "config.json"
        hint = f"; did you mean {nested.parent}?" if nested.is_file() else ""
        raise ModelError(f"{path} is no exported model: it has no config.json{hint}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds a JSON {type(config).__name__}; expected an object")
    return config


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


def _not_found(name: str, error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    path = Path(name)
    if path.is_dir():
        content = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        return (
            f"backbone.name {name!r} is a folder, but no language model can be loaded from it (it "
            f"has {content}): "
            f"{_first_line(error)}"
        )
    return (
        f"backbone.name {name!r} was not found. Tried: a folder {path.absolute()} (absent); the "
        "local Hugging Face "
        f"cache {HF_HUB_CACHE} (not in it). Nothing is downloaded during training: give a folder, "
        "fetch it "
        f"first with `hf download {name}`, or use `random`"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
