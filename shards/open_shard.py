"""Hold a shard open for reading: its descriptor and its index."""

import os

import numpy as np

from shards.index import MemberIndex


class OpenShard:
    """A shard's descriptor and index; closed once no thread uses it any more."""

    __slots__ = ("bytes", "descriptor", "index", "members")

    def __init__(self, descriptor: int, size: int, index: np.ndarray | MemberIndex) -> None:
        """Take ownership of the descriptor; ``size`` is the tar's size in bytes."""
        self.descriptor = descriptor
        self.bytes = size
        self.members = index if isinstance(index, MemberIndex) else None
        # For a set built by this package: records of 16 bytes, unpacked one by one.
        self.index = index.data if isinstance(index, MemberIndex) else index.tobytes()

    def __del__(self) -> None:
        """Close it."""
        os.close(self.descriptor)
