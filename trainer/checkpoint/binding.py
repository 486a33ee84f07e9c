"""What ties the files of a checkpoint to each other, to their run and to their step.

Hashes in a manifest say that a file is as it was written, not that it belongs there: one of another
step or run has hashes too. So the tensors' files hold, as metadata of the safetensors format, the
step, a fingerprint of the run and one of ``state.json``, which names the files that do. Two runs
with the same settings on the same data still write the same bytes, in whatever folder and on
however many ranks. Checkpoints of earlier versions have none of this, and are read.
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
"""Entry of ``state.json``: the files that hold the binding, all of which a checkpoint has, and the
fingerprint of the run."""

MAX_HEADER_BYTES = 100 << 20
"""Longest header of a safetensors file, by that format."""

_HOW = ("config", "ranks", "zero_stage", "versions")
"""Entries of ``state.json`` that say how a step was computed; resuming compares the settings."""

_PARTS = {"step": "step", "run": "run (settings or data)", "state": "state.json"}

Header = dict[str, Any]


class _Tensor(msgspec.Struct):
    """What a header says of a tensor, as far as the size of the file follows from it."""

    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


class _Bound(msgspec.Struct):
    """The entry of ``state.json``."""

    files: list[str]
    run: str


def bind(state: Mapping[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """Let a state name its run, and the files that will be bound to it.

    Args:
        state: What goes into ``state.json``.
        files: Names of the files.
    """
    settings = flatten(state.get("config") or {})
    kept = {name: value for name, value in settings.items() if name not in MAY_CHANGE}
    run = fingerprint([kept, state.get("data")])
    return {**state, BOUND: {"files": sorted(files), "run": run}}


def binding_of(state: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of the files that a state is bound to.

    Args:
        state: All of ``state.json``.
    """
    told = {name: value for name, value in state.items() if name not in _HOW}
    return {"step": str(state["step"]), "run": state[BOUND]["run"], "state": fingerprint(told)}


def check_bound(folder: Path, state: Mapping[str, Any], listed: Iterable[str]) -> None:
    """See that the files of a checkpoint belong to its state.

    Args:
        folder: Of the checkpoint.
        state: Its ``state.json``.
        listed: Files of its manifest.

    Raises:
        CheckpointError: Naming the file, and whether its step, its run or its state is another.
    """
    tensors = sorted(name for name in listed if name.endswith(".safetensors"))
    try:
        if BOUND not in state:  # of an earlier version
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
    """See that a state that names no files came with files of its own time.

    Raises:
        CheckpointError: A file is bound to another state.
        DataError: A file cannot be read.
    """
    for name in tensors:
        metadata = read_metadata(folder / name)
        if metadata.keys() & _PARTS.keys():
            raise CheckpointError(
                f"{folder} is mixed: {name} belongs to another state.json, for this one has no "
                f"entry {BOUND!r}; put the right file back"
            )


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, and see that the file is as long as its header says.

    Raises:
        DataError: It cannot be read, or is cut or damaged.
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
        raise DataError(f"{path.name} has {size} bytes, but its header makes it {end}")
    return metadata
