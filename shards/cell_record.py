"""The commit record of a cell: what its data file must be, of which column and which shard.

``content`` stands in the record and in the header of the data file. It is a hash over the column,
the shard, the rows, and every tensor with its type, shape and checksum; so neither a record nor a
header can be changed, nor a data file be put under another column, without the two parting.
Cells that were written before there was a ``digest`` have the hash over the tensors alone.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from shards.cell_tensors import CellHeader, TensorPlace, tensor_bytes
from shards.errors import DamageError
from shards.files import fingerprint, parse_json
from shards.manifest import Count, Sha256, ShardInfo

MAX_RECORD_BYTES = 1 << 20
"""Largest commit record that is read."""
_Crc32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


@dataclass(frozen=True, slots=True)
class CellRecord:
    """What a commit record says."""

    column: Sha256
    """Fingerprint of the column set."""
    shard: str
    """File name of the shard the cell belongs to."""
    shard_sha256: Sha256
    rows: Count
    bytes: Count
    content: Sha256
    """What binds the data file to all of this; also in its header."""
    sha256: Sha256
    """sha256 of the data file."""
    crc32: dict[str, _Crc32]
    """CRC-32 of each tensor's bytes."""
    digest: Sha256 | None = None
    """sha256 over the tensors; None in cells of older versions, whose ``content`` is just that."""


def data_path(folder: Path, shard: ShardInfo) -> Path:
    """The safetensors file of a cell."""
    return folder / f"{shard.stem}.safetensors"


def record_path(folder: Path, shard: ShardInfo) -> Path:
    """The commit record of a cell."""
    return folder / f"{shard.stem}.json"


def digest_of(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 (hex) over tensors in the order of their names: type, shape and bytes of each."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(tensor_bytes(array))
    return digest.hexdigest()


def content_of(record: CellRecord, places: Mapping[str, TensorPlace]) -> str:
    """What a record's ``content`` must be, for tensors of these types and shapes."""
    if record.digest is None:
        return record.content
    return fingerprint(
        {
            "column": record.column,
            "shard": record.shard,
            "shard_sha256": record.shard_sha256,
            "rows": record.rows,
            "digest": record.digest,
            "tensors": {
                name: [place.dtype.str, list(place.shape), record.crc32[name]]
                for name, place in places.items()
            },
        }
    )


def parse_record(data: bytes, column: str, shard: ShardInfo, path: object) -> CellRecord:
    """Read a commit record and check that it is of this cell.

    Args:
        data: The bytes of the record.
        column: Fingerprint of the column set.
        shard: The shard of the cell.
        path: Where the bytes are from, for messages.

    Raises:
        DamageError: It is not a record, or is of another column, shard, or version of the shard.
    """
    record = parse_json(data, CellRecord, where=path)
    expected = {
        "column": column,
        "shard": shard.name,
        "shard_sha256": shard.sha256,
        "rows": shard.samples,
    }
    for name, value in expected.items():
        if (found := getattr(record, name)) != value:
            raise DamageError(f"{path} is of another cell: {name} is {found!r}, expected {value!r}")
    return record


def check_header(path: object, header: CellHeader, record: CellRecord) -> None:
    """Check that a data file is the one that a commit record is of, by its header alone.

    Raises:
        DamageError: It is not.
    """
    if set(header.places) != set(record.crc32):
        raise DamageError(
            f"{path} holds the tensors {sorted(header.places)}, "
            f"its commit record says {sorted(record.crc32)}"
        )
    if header.content != record.content or content_of(record, header.places) != record.content:
        raise DamageError(
            f"{path} is not the file that its commit record describes: one of them is of another "
            "column, was edited, or is of another writer"
        )
    header.check_shapes(record.rows, path)
