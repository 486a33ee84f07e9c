"""Find Hugging Face folders on this machine, check them, and only then load them.

This module loads every tokenizer, configuration and model in Hugging Face's format; no other module
does. Code in a folder is never run, the user is never asked whether to run it, and no hub is
contacted: a path is a path, and a name is looked up in the local cache, which ``hf download``
fills.
"""

import contextlib
import copy
import itertools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import DamageError, DataError, first_line, joined_line, one_line
from shards.files import (
    MAX_JSON_BYTES,
    did_you_mean,
    did_you_mean_inside,
    is_folder,
    read_bytes,
    read_json,
)
from shards.pretrained_folder import MAX_CONFIG_BYTES, check_folder, check_values

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MATTERS = re.compile(r"regex pattern|byte fallback|[Ff]alling back|rope_|RoPE")
"""Warnings in which transformers continues with other tokens or positions than intended."""
_FILES = ("config.json", "tokenizer*", "vocab*", "*.model")
"""Files that only the folder of a model or of a tokenizer has."""
_said: set[str] = set()


@dataclass(frozen=True)
class _Layers:
    """Layers in a model's configuration: most families use the first key, DistilBERT the second."""

    num_hidden_layers: int | None = None
    n_layers: int | None = None


def find_folder(name: str | os.PathLike[str]) -> Path:
    """Find the folder of a path, or of a name in Hugging Face's local cache.

    Raises:
        DataError: The folder does not exist, or only holds such folders; the message has the
            nearest names.
    """
    name = os.fspath(name)
    path = Path(name)
    if name and is_folder(path):
        if not any(any(path.glob(pattern)) for pattern in _FILES):
            hint = did_you_mean_inside(path, "*/config.json")
            if hint:
                raise DataError(f"{name!r} is not the folder of a model or a tokenizer{hint}")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    tried = f"there is no such folder ({str(path.absolute())!r}{did_you_mean(name)})"
    if _NAME.fullmatch(name) and name.split("/")[0] not in (".", ".."):
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            tried += (
                f", and the local Hugging Face cache {HF_HUB_CACHE} does not have it. Nothing is "
                f"downloaded automatically: give a folder, or run `hf download {name}` first"
            )
    raise DataError(f"{name!r} was not found: {tried}")


def num_layers(name: str | os.PathLike[str]) -> int | None:
    """Read a model's number of layers, without loading its family's code.

    Returns:
        None if the model is not on this machine, or its ``config.json`` has no such entry.
    """
    try:
        found = read_json(find_folder(name) / "config.json", _Layers, limit=MAX_CONFIG_BYTES)
    except DataError:
        return None  # loading the model reports the error
    return found.num_hidden_layers or found.n_layers


@contextlib.contextmanager
def quiet(name: object = None) -> Iterator[None]:
    """Suppress transformers' bars, reports and warnings: this module checks what matters.

    Args:
        name: The folder to load. A warning that the folder is not read as it was made is printed
            once, in one line.
    """
    from transformers.utils import logging as settings

    logger = logging.getLogger("transformers")
    told = _Collector()
    bars, handlers, propagates = (
        settings.is_progress_bar_enabled(),
        logger.handlers,
        logger.propagate,
    )
    settings.disable_progress_bar()
    logger.handlers, logger.propagate = [told], False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        if bars:
            settings.enable_progress_bar()
    for text in [*told.texts, *(str(warning.message) for warning in caught)]:
        line = f"tnr: note: {name}: transformers says: {joined_line(text)}"
        if name is not None and _MATTERS.search(text) and line not in _said:
            _said.add(line)
            print(one_line(line), file=sys.stderr, flush=True)


class _Collector(logging.Handler):
    """Keeps log records from level WARNING on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a panic of a Rust library, which is not an ``Exception``, as RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # from pyo3, which cannot be imported
            raise
        raise RuntimeError(f"the library panicked: {error}") from error


def load_tokenizer(name: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """Load a Hugging Face tokenizer.

    Args:
        name: A folder, or a name in the local cache.

    Raises:
        DataError: The tokenizer is missing, needs its own code, or cannot be read.
    """
    from transformers import AutoTokenizer

    folder = _checked(name)
    try:
        with panics_as_errors(), quiet(name):
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # OSError, ValueError, KeyError, ImportError, RecursionError, ...
        raise DataError(
            f"no tokenizer can be loaded from the folder {os.fspath(name)!r}: {first_line(error)}"
        ) from error


def load_backend(folder: Path) -> "Tokenizer":
    """Load the fast tokenizer of a saved tokenizer's folder, without Hugging Face's settings.

    Raises:
        DataError: The file is missing, cannot be read, or is not a regular file.
        DamageError: The file is too large, or not a fast tokenizer.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    data = read_bytes(file, limit=MAX_JSON_BYTES)
    try:
        with panics_as_errors():
            return Tokenizer.from_buffer(data)
    except Exception as error:  # the tokenizers package raises no other type
        raise DamageError(f"{file} is not a fast tokenizer: {first_line(error)}") from error


def load_config(name: str | os.PathLike[str]) -> "PreTrainedConfig":
    """Load the configuration of a Hugging Face model.

    Arguments and errors are those of :func:`load_tokenizer`.
    """
    from transformers import AutoConfig

    folder = _checked(name)
    try:
        with quiet(name):
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # each family raises other types
        raise DataError(_no_model(name, folder, error)) from error


def load_model(
    name: str | os.PathLike[str],
    config: "PreTrainedConfig",
    *,
    is_masked: bool = False,
    **arguments: Any,
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """Load a plain Hugging Face model from safetensors.

    Args:
        name: A folder, or a name in the local cache.
        config: The model's configuration, with any overrides.
        is_masked: Add the head for masked language modelling; a new one if the folder has none.
        **arguments: Passed on to transformers.

    Returns:
        The model in eval mode, and transformers' loading report.

    Raises:
        DataError: See :func:`load_tokenizer`.
        DamageError: The configuration describes a larger model than the weights can hold.
    """
    from transformers import AutoModel, AutoModelForMaskedLM

    folder = _checked(name)
    auto: Any = AutoModelForMaskedLM if is_masked else AutoModel
    try:
        with quiet(name):
            with on_meta():  # a family may record its construction in its configuration
                check_size(folder, new_model(copy.deepcopy(config)))
            loaded: Any = auto.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **arguments,
            )
    except DamageError:
        raise
    except Exception as error:  # each family raises other types
        raise DataError(_no_model(name, folder, error)) from error
    model, account = loaded
    return model, account


def new_model(
    config: "PreTrainedConfig", *, is_masked: bool = False, **arguments: Any
) -> "PreTrainedModel":
    """Build a plain Hugging Face model with random weights.

    Args:
        config: The model's configuration.
        is_masked: Add a head for masked language modelling.
        **arguments: Passed on to the model's class.

    Raises:
        DataError: The family cannot be built from this configuration, or needs its own code.
    """
    from transformers import AutoModel, AutoModelForMaskedLM

    auto: Any = AutoModelForMaskedLM if is_masked else AutoModel
    try:
        with quiet():
            model: PreTrainedModel = auto.from_config(config, trust_remote_code=False, **arguments)
    except Exception as error:  # each family raises other types
        raise DataError(
            f"no model of type {config.model_type!r} can be built: {first_line(error)}"
        ) from error
    return model


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Build models without memory or initial values; leave random number generators unchanged."""
    import torch
    from transformers import initialization

    with (
        torch.random.fork_rng(devices=[]),
        initialization.no_init_weights(),
        initialization.meta_device_safe_creation_ops(),
        torch.device("meta"),
    ):
        yield


def check_size(folder: Path, empty: "PreTrainedModel") -> None:
    """Refuse a configuration whose model is larger than the weights beside it can hold.

    Args:
        folder: Folder of the configuration and the weights.
        empty: The model of that configuration, built :func:`on_meta`.

    Raises:
        DamageError: See :func:`shards.pretrained_folder.check_values`.
    """
    check_values(
        folder, sum(t.numel() for t in itertools.chain(empty.parameters(), empty.buffers()))
    )


def _checked(name: str | os.PathLike[str]) -> Path:
    folder = find_folder(name)
    check_folder(folder)
    return folder


def _no_model(name: str | os.PathLike[str], folder: Path, error: Exception) -> str:
    content = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    return (
        f"{os.fspath(name)!r} is a folder, but no language model can be loaded from it (it has "
        f"{content}): {first_line(error)}"
    )
