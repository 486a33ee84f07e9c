"""Binding of a checkpoint's files to each other, to their run and to their step.

Hashes in a manifest show that a file is as written, not that it belongs there: a file of another
step or run has hashes, too. So the tensor files hold, as metadata of the safetensors format, the
step, a fingerprint of the run and one of ``state.json``, which names these files. Two runs with the
same settings on the same data still write the same bytes, in any folder and on any number of ranks.
Checkpoints of earlier versions have no binding and are still read.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from shards.errors import DataError
from shards.files import fingerprint, open_regular, parse_json
from trainer.checkpoint.resume import MAY_CHANGE
from trainer.config.flat import flatten
from trainer.errors import CheckpointError

BOUND = "bound"
"""Entry of ``state.json``: the names of the bound files, all of which a checkpoint must have, and
the fingerprint of the run."""

MAX_HEADER_BYTES = 100 << 20
"""Longest header that the safetensors format allows."""

_HOW = ("config", "ranks", "zero_stage", "versions")
"""Entries of ``state.json`` that record how a step was computed; a resume compares the settings."""

_PARTS = {"step": "step", "run": "run (settings or data)", "state": "state.json"}

Header = dict[str, Any]


class _Tensor(msgspec.Struct):
    """Header entry of a tensor, with the fields that determine the size of the file."""

    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


class _Bound(msgspec.Struct):
    """Entry of ``state.json`` for the binding."""

    files: list[str]
    run: str


def bind(state: Mapping[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """Add the run's fingerprint and the names of the bound files to a state.

    Args:
        state: Content of ``state.json``.
        files: Names of the files.
    """
    settings = flatten(state.get("config") or {})
    kept = {name: value for name, value in settings.items() if name not in MAY_CHANGE}
    run = fingerprint([kept, state.get("data")])
    return {**state, BOUND: {"files": sorted(files), "run": run}}


def binding_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata for the files that are bound to a state.

    Args:
        state: Complete content of ``state.json``.
    """
    told = {name: value for name, value in state.items() if name not in _HOW}
    return {"step": str(state["step"]), "run": state[BOUND]["run"], "state": fingerprint(told)}


def check_bound(folder: Path, state: Mapping[str, Any], listed: Iterable[str]) -> None:
    """Check that the files of a checkpoint belong to its state.

    Args:
        folder: Folder of the checkpoint.
        state: Content of its ``state.json``.
        listed: Files in its manifest.

    Raises:
        CheckpointError: A file belongs to another step, run or state; names the file.
    """
    tensors = sorted(name for name in listed if name.endswith(".safetensors"))
    try:
        if BOUND not in state:  # an earlier version wrote it
            _check_unbound(folder, tensors)
            return
        bound = msgspec.convert(state[BOUND], _Bound)
        expected = binding_of(state)
        for name in sorted({*bound.files, *tensors}):
            if name not in listed or Path(name).name != name:
                raise DataError(f"its manifest does not list {name}")
            found = read_metadata(folder / name)
            for key, what in _PARTS.items():
                if found.get(key) != expected[key]:
                    raise CheckpointError(
                        f"{folder} is mixed: {name} belongs to another {what}: {found.get(key)}, "
                        f"expected {expected[key]}; put the right file back"
                    )
    except (DataError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{folder} is incomplete or damaged: {error}") from error


def _check_unbound(folder: Path, tensors: Iterable[str]) -> None:
    """Check that a state without bound files came with unbound files.

    Raises:
        CheckpointError: A file is bound to another state.
        DataError: A file cannot be read.
    """
    for name in tensors:
        metadata = read_metadata(folder / name)
        if metadata.keys() & _PARTS.keys():
            raise CheckpointError(
                f"{folder} is mixed: {name} belongs to another state.json, because this one has "
                f"no entry {BOUND!r}; put the right file back"
            )


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, and check the file's length against its header.

    Raises:
        DataError: The file is unreadable, truncated or damaged.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise DataError(f"{path.name} has {size} bytes, too few for its own header")
        content = file.read(length)
    header = parse_json(content, Header, where=path.name)
    try:
        metadata = msgspec.convert(header.pop("__metadata__", {}), dict[str, str])
        known = msgspec.convert(header, dict[str, _Tensor])
    except msgspec.ValidationError as error:
        raise DataError(f"{path.name} is damaged or was edited: {error}") from error
    end = 8 + length + max((tensor.data_offsets[1] for tensor in known.values()), default=0)
    if end != size:
        raise DataError(f"{path.name} has {size} bytes, but by its header it should have {end}")
    return metadata
