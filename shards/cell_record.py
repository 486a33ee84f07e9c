"""Describe a cell's commit record: column, shard, and content of the data file.

Both the record and the header of the data file hold ``content``, a hash over the column, the shard,
the rows, and every tensor with its type, shape and checksum. If a record or header is changed, or a
data file is put under another column, the two no longer match. Cells written before ``digest``
existed have a ``content`` over the tensors alone.
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
    """The content of a commit record."""

    column: Sha256
    """Fingerprint of the column set."""
    shard: str
    """File name of the cell's shard."""
    shard_sha256: Sha256
    rows: Count
    bytes: Count
    content: Sha256
    """Binds the data file to the fields above; also in the data file's header."""
    sha256: Sha256
    """sha256 of the data file."""
    crc32: dict[str, _Crc32]
    """CRC-32 of each tensor's bytes."""
    digest: Sha256 | None = None
    """sha256 over the tensors; None in cells of older versions, where ``content`` is this hash."""


def data_path(folder: Path, shard: ShardInfo) -> Path:
    """Return the path of a cell's safetensors file."""
    return folder / f"{shard.stem}.safetensors"


def record_path(folder: Path, shard: ShardInfo) -> Path:
    """Return the path of a cell's commit record."""
    return folder / f"{shard.stem}.json"


def digest_of(tensors: Mapping[str, np.ndarray]) -> str:
    """Hash tensors in the order of their names: sha256 of types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(tensor_bytes(array))
    return digest.hexdigest()


def content_of(record: CellRecord, places: Mapping[str, TensorPlace]) -> str:
    """Compute what a record's ``content`` must be for tensors of these types and shapes."""
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
    """Parse a commit record and check that it belongs to this cell.

    Args:
        data: The bytes of the record.
        column: Fingerprint of the column set.
        shard: The shard of the cell.
        path: Source of the bytes, for messages.

    Raises:
        DamageError: The bytes are not a record, or the record belongs to another column, to another
            shard, or to another version of the shard.
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
            raise DamageError(
                f"{path} belongs to another cell: {name} is {found!r}, expected {value!r}"
            )
    return record


def check_header(path: object, header: CellHeader, record: CellRecord) -> None:
    """Check by its header that a data file is the one that a record describes.

    Raises:
        DamageError: The data file is another one.
    """
    if set(header.places) != set(record.crc32):
        raise DamageError(
            f"{path} holds the tensors {sorted(header.places)}, "
            f"its commit record says {sorted(record.crc32)}"
        )
    if header.content != record.content or content_of(record, header.places) != record.content:
        raise DamageError(
            f"{path} is not the file that its commit record describes: one of them belongs to "
            "another column, was edited, or comes from another writer"
        )
    header.check_shapes(record.rows, path)
