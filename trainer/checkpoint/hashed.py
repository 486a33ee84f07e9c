"""Files that are hashed while they are written, so that no file is read again for a checksum."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

FileEntry = dict[str, Any]
"""Manifest entry of a file: its ``bytes`` and its ``sha256``."""

_BLOCK_BYTES = 4 << 20

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class HashedFile:
    """File that is durable and hashed at the end of the block; a context manager.

    Hashing and writing both release the interpreter's lock, so that training in another thread
    continues.

    Args:
        path: File to write; an existing file is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> "HashedFile":
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Make the file durable, unless the block failed; close it."""
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: The disk refused the write.
        """
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            # Each block is hashed and written while it is in the processor's cache.
            block = view[start : start + _BLOCK_BYTES]
            self._digest.update(block)
            self._file.write(block)
        self._bytes += len(view)

    @property
    def entry(self) -> FileEntry:
        """Manifest entry of the file."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def write_hashed_json(path: Path, obj: Any) -> FileEntry:
    """Write indented JSON to a new file.

    Raises:
        OSError: The disk refused the write.
        ValueError: ``obj`` contains NaN or an infinity, which JSON does not allow.
    """
    text = json.dumps(obj, ensure_ascii=False, indent=2, allow_nan=False)
    with HashedFile(path) as file:
        file.write(text.encode() + b"\n")
    return file.entry


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> FileEntry:
    """Write tensors on the CPU to a new safetensors file, without copying them.

    The safetensors package does not hash, so the file would have to be read again, and it reports a
    full disk as an error of its own. Hence this writer of the format: the length of a JSON header,
    the header, then the tensors, the widest element type first so that all are aligned.

    Args:
        path: File to write; an existing file is replaced.
        tensors: Tensors by name; contiguous, on the CPU.
        metadata: Metadata of the file.

    Raises:
        OSError: The disk refused the write.
        ValueError: A tensor is not contiguous, not on the CPU, or of a type that the format lacks.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, contiguous: "
                f"{tensor.is_contiguous()}; expected a contiguous tensor on the CPU"
            )
        start, end = end, end + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with HashedFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if tensors[name].numel():
                # Viewed as bytes, because NumPy has no bfloat16.
                file.write(tensors[name].detach().reshape(-1).view(torch.uint8).numpy().data)
    return file.entry
