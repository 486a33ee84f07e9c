"""Refuse unsafe Hugging Face folders before any part of them is loaded.

A folder may not name code, files outside itself or under unusual names, or numbers that make a
build endless; its files must be readable to their end.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shards.errors import DamageError, DataError
from shards.files import MAX_JSON_BYTES, open_regular, parse_json, read_json

MAX_CONFIG_BYTES = 16 << 20
_MAX_HEADER_BYTES = 32 << 20
"""Largest header of a safetensors file: a file with 100,000 tensors has a third of this."""
_TEMPLATES = "additional_chat_templates"
_ADAPTER = "adapter_config.json"

_REDIRECTS = ("transformers_weights", "configuration_files", "fast_tokenizer_files", "init_inputs")
"""Entries that redirect transformers to other files than the checked ones."""

_COUNT = re.compile(
    r"(layers?|blocks?|block_sizes|depths?|experts?|groups?|stages?|repeats?|labels|extra_ids)$"
)
"""Entries that make transformers build as many Python objects as their value."""
_MANY = 1000
"""Largest count that is allowed for any weights: such a model is built in seconds."""
_MANY_LABELS = 1_000_000
_FREE_VALUES = 1 << 26
"""Values that a model may have beyond its weights: position tables and masks are not stored."""


@dataclass(frozen=True)
class _Index:
    """The part that is checked of an index of weights in several files."""

    weight_map: dict[str, str]


def check_folder(folder: Path) -> None:
    """Refuse a folder that needs its own code or cannot be read completely.

    Raises:
        DataError: A file names code or a file elsewhere, belongs to an adapter, or is a pipe or a
            device; or the folder cannot be read.
        DamageError: A file is too large for its kind, is nested too deeply, is not JSON, or counts
            more layers than the weights can have.
    """
    try:
        entries = sorted(folder.iterdir())
        if (folder / _TEMPLATES).is_dir():
            entries += sorted((folder / _TEMPLATES).iterdir())
        for entry in entries:
            if entry.exists():  # a broken link counts as an absent file
                _check_file(entry, entry.stat())
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from error


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose header is larger than the file or the limit.

    Raises:
        DataError: The file cannot be read, or is not a regular file.
        DamageError: The header is too large.
    """
    _header(path)


def check_values(folder: Path, num_values: int) -> None:
    """Refuse a configuration whose model has more values than the weights beside it can hold.

    A value takes at least one byte. A folder without weights passes: loading it reports the error.

    Args:
        folder: Folder with ``config.json`` and safetensors files.
        num_values: Number of values in all parameters and buffers of the configured model.

    Raises:
        DamageError: The model has over ``_FREE_VALUES`` more values than the weights.
    """
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if held and num_values > held + _FREE_VALUES:
        raise DamageError(
            f"{folder / 'config.json'} describes a model of {num_values:,} values, but the weights "
            f"beside it have {held:,} bytes: it was edited, or belongs to another model"
        )


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
    elif path.name == _ADAPTER:
        raise DataError(
            f"{path} makes its folder an adapter of another model, whose weights may then come "
            "from anywhere; merge the adapter into that model and save the result, or remove the "
            "file"
        )
    elif path.name.endswith("config.json"):
        _check_config(path)
    elif path.suffix == ".json" and status.st_size > MAX_JSON_BYTES:
        raise DamageError(
            f"{path} has {status.st_size:,} bytes; expected at most {MAX_JSON_BYTES:,}"
        )


def _check_config(path: Path) -> None:
    for key, value in _entries(read_json(path, limit=MAX_CONFIG_BYTES)):
        is_kernel = key.endswith("_implementation") and "/" in str(value)
        if value and (key == "auto_map" or is_kernel):
            raise DataError(
                f"{path} needs its own code ({key}: {_short(value)}), which is never run; "
                f"take a model whose family transformers has, or remove {key} from the file if "
                "transformers' own class reads these weights correctly"
            )
        # A nested configuration is an object; a name there would be looked up on a hub.
        if value and (key in _REDIRECTS or (key == "backbone" and isinstance(value, str))):
            raise DataError(
                f"{path} sends its reader elsewhere ({key}: {_short(value)}), past the checks of "
                f"this folder; remove {key} from the file, and give the intended files their "
                "usual names"
            )
        if value and key == "quantization_config":
            raise DataError(
                f"{path} belongs to quantised weights ({key}: {_short(value)}), which cannot be "
                "trained; take the model that they were made from"
            )
        if _COUNT.search(key):
            _check_count(path, key, value)


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of all objects of a JSON value, at any depth."""
    pending = [content]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            yield from node.items()
            pending += node.values()


def _check_count(path: Path, key: str, value: Any) -> None:
    counts = value if isinstance(value, list) else [value]
    count = max((n for n in counts if isinstance(n, int)), default=0)
    if count <= (_MANY_LABELS if key.endswith("labels") else _MANY):
        return
    weights = sorted(path.parent.glob("*.safetensors"))
    tensors = sum(
        len(parse_json(_header(file), dict[str, msgspec.Raw], where=file)) for file in weights
    )
    if count > tensors:
        raise DamageError(
            f"{path} says {key} {count:,}, but the weights beside it are {tensors:,} tensors: it "
            "was edited, or belongs to another model"
        )


def _header(path: Path) -> bytes:
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8) or b"", "little")
        left = os.fstat(file.fileno()).st_size - 8
        if not 0 < length <= min(left, _MAX_HEADER_BYTES):
            raise DamageError(
                f"{path} is not a whole safetensors file: its header should have {length:,} "
                f"bytes; expected at most {min(max(left, 0), _MAX_HEADER_BYTES):,}"
            )
        return file.read(length) or b""


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
