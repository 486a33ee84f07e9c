"""Hugging Face folders: found on this machine, looked through, and only then loaded.

Every tokenizer, configuration and model of Hugging Face's form is loaded here and nowhere else.
Code that a folder brings along is never run, nobody is asked whether to run it, and no hub is asked
for anything: a path is a path, and a name is looked up in the local cache, which ``hf download``
fills.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import DamageError, DataError
from shards.files import (
    MAX_JSON_BYTES,
    did_you_mean,
    is_folder,
    open_regular,
    read_bytes,
    read_json,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_MAX_CONFIG_BYTES = 16 << 20
_MAX_HEADER_BYTES = 32 << 20
"""Largest header of a safetensors file: one of 100,000 tensors has a third of it."""
_TEMPLATES = "additional_chat_templates"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class _Index:
    """Of the index of weights in several files, what is looked at."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class _Layers:
    """Of a model's configuration: most families have the first, DistilBERT the second."""

    num_hidden_layers: int | None = None
    n_layers: int | None = None


def find_folder(name: str | os.PathLike[str]) -> Path:
    """Find the folder that a path, or a name in the local Hugging Face cache, stands for.

    Raises:
        DataError: There is no such folder; the message has the nearest name.
    """
    name = os.fspath(name)
    path = Path(name)
    if name and is_folder(path):
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
                f"downloaded unasked: give a folder, or fetch it first with `hf download {name}`"
            )
    raise DataError(f"{name!r} was not found: {tried}")


def num_layers(name: str | os.PathLike[str]) -> int | None:
    """Read how many layers a model has, without loading its family's code.

    Returns:
        None where it is not on this machine, or its ``config.json`` does not say.
    """
    try:
        found = read_json(find_folder(name) / "config.json", _Layers, limit=_MAX_CONFIG_BYTES)
    except DataError:
        return None  # whoever loads it says what is wrong
    return found.num_hidden_layers or found.n_layers


def check_folder(folder: Path) -> None:
    """Refuse a folder that wants code of its own, or that could not be read to its end.

    Raises:
        DataError: A file names code, or is a pipe or a device; or the folder cannot be read.
        DamageError: A file is larger than its kind can be, is nested too deeply, or is not JSON.
    """
    try:
        entries = sorted(folder.iterdir())
        if (folder / _TEMPLATES).is_dir():
            entries += sorted((folder / _TEMPLATES).iterdir())
        for entry in entries:
            if entry.exists():  # a link to nothing is an absent file
                _check_file(entry, entry.stat())
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from error


def _check_file(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"cannot read {path}: it is not a regular file")
    if path.suffix == ".safetensors":
        check_header(path)
    elif path.name.endswith(".safetensors.index.json"):
        for name in read_json(path, _Index).weight_map.values():
            if not re.fullmatch(r"[\w.-]+\.safetensors", name):
                raise DamageError(
                    f"{path} says that weights are in {_short(name)}; expected a safetensors file "
                    "beside it"
                )
    elif path.name.endswith("config.json"):
        for place, wanted in _own_code(read_json(path, limit=_MAX_CONFIG_BYTES)):
            raise DataError(
                f"{path} wants code of its own ({place}: {_short(wanted)}), which is never run; "
                f"take a model whose family transformers has, or remove {place} from the file if "
                "transformers' own class reads these weights as they were made"
            )
    elif path.suffix == ".json" and status.st_size > MAX_JSON_BYTES:
        raise DamageError(
            f"{path} has {status.st_size:,} bytes; expected at most {MAX_JSON_BYTES:,}"
        )


def _own_code(content: Any) -> Iterator[tuple[str, Any]]:
    """Entries that name code, at any depth: classes of the folder, and kernels of a hub."""
    pending = [content]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            for key, value in node.items():
                is_kernel = key.endswith("_implementation") and "/" in str(value)
                if value and (key == "auto_map" or is_kernel):
                    yield key, value
                pending.append(value)


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose header is larger than the file or than any header is.

    Raises:
        DataError: It cannot be read, or is not a regular file.
        DamageError: The header is too large.
    """
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8) or b"", "little")
        left = os.fstat(file.fileno()).st_size - 8
    if not 0 < length <= min(left, _MAX_HEADER_BYTES):
        raise DamageError(
            f"{path} is not a whole safetensors file: its header is said to have {length:,} bytes; "
            f"expected at most {min(max(left, 0), _MAX_HEADER_BYTES):,}"
        )


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a panic of a library written in Rust, which is no ``Exception``, as RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which cannot be imported
            raise
        raise RuntimeError(f"the library panicked: {error}") from error


def load_tokenizer(name: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """Load a Hugging Face tokenizer.

    Args:
        name: A folder, or a name in the local cache.

    Raises:
        DataError: It is not there, wants code of its own, or cannot be read.
    """
    from transformers import AutoTokenizer

    folder = _checked(name)
    try:
        with panics_as_errors():
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
        DataError: There is none, it cannot be read, or it is not a regular file.
        DamageError: It is too large, or not a fast tokenizer.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    data = read_bytes(file, limit=MAX_JSON_BYTES)
    try:
        with panics_as_errors():
            return Tokenizer.from_buffer(data)
    except Exception as error:  # the only kind that the tokenizers package raises
        raise DamageError(f"{file} is not a fast tokenizer: {first_line(error)}") from error


def load_config(name: str | os.PathLike[str]) -> "PreTrainedConfig":
    """Load the configuration of a Hugging Face model; arguments and errors of
    :func:`load_tokenizer`."""
    from transformers import AutoConfig

    folder = _checked(name)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as many kinds as there are families
        raise DataError(_no_model(name, folder, error)) from error


def load_model(
    name: str | os.PathLike[str], config: "PreTrainedConfig", **arguments: Any
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """Load a plain Hugging Face model from safetensors.

    Args:
        name: A folder, or a name in the local cache.
        config: Its configuration, with any overrides.
        **arguments: Passed on to transformers.

    Returns:
        The model in eval mode, and transformers' account of the loading.

    Raises:
        DataError: See :func:`load_tokenizer`.
    """
    from transformers import AutoModel

    folder = _checked(name)
    try:
        loaded: Any = AutoModel.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    except Exception as error:  # as many kinds as there are families
        raise DataError(_no_model(name, folder, error)) from error
    model, account = loaded
    return model, account


def new_model(config: "PreTrainedConfig", **arguments: Any) -> "PreTrainedModel":
    """Build a plain Hugging Face model with random weights.

    Args:
        config: Its configuration.
        **arguments: Passed on to the model's class.

    Raises:
        DataError: The family cannot be built from this configuration, or wants code of its own.
    """
    from transformers import AutoModel

    try:
        model: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=False, **arguments)
    except Exception as error:  # as many kinds as there are families
        raise DataError(
            f"no model of type {config.model_type!r} can be built: {first_line(error)}"
        ) from error
    return model


def first_line(error: BaseException) -> str:
    """Return an error's class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


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
