"""The vector of the empty title (all padding), in a file of a ``teacher-news`` column."""

from pathlib import Path

import numpy as np

from shards.column_extras import EMPTY, read_vector, write_vector
from shards.reader import ShardSet
from trainer.errors import DamageError

__all__ = ["EMPTY", "read_empty", "write_empty"]

write_empty = write_vector


def read_empty(shard_set: ShardSet, folder: Path) -> np.ndarray:
    """The vector [E] in a column's folder, as it was written.

    Raises:
        DamageError: It is not there, or not what was written; the message says what mends it.
    """
    if shard_set.mirror is not None and shard_set.mirror.is_elsewhere(folder):
        shard_set.mirror.add_extras(folder)
    try:
        return read_vector(folder)
    except DamageError as error:
        mend = "tnr teachers cache makes it again, and encodes nothing else"
        raise DamageError(f"{error}; {mend}") from error
