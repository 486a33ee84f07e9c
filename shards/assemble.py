"""Write the shards from the spools; any process may write any whole shard."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shards.errors import DamageError
from shards.files import read_json, write_json_atomic
from shards.manifest import ShardInfo, shard_name
from shards.spool import Spool, read_at
from shards.writer import ShardFile


@dataclass(frozen=True)
class Piece:
    """Samples in one spool."""

    spool: Path
    offsets: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: the samples from ``first_row`` on."""

    folder: Path
    name: str
    first_row: int
    pieces: tuple[Piece, ...]

    @property
    def num_samples(self) -> int:
        """The number of samples."""
        return sum(len(piece.lengths) for piece in self.pieces)

    @property
    def num_bytes(self) -> int:
        """The size of all payloads."""
        return int(sum(piece.lengths.sum() for piece in self.pieces))


def plan_shards(
    spools: Sequence[Spool], kept: np.ndarray, samples_per_shard: int, folder: Path, kind: str
) -> Iterator[ShardTask]:
    """Yield the shards in order; only the next shard's places are in memory.

    Args:
        spools: Spools in the order of the inputs.
        kept: bool ``[n]``: whether a row of the spools becomes a sample.
        samples_per_shard: Number of samples in every shard but the last.
        folder: Folder of the shards.
        kind: A name in :data:`shards.set_kinds.KINDS`.
    """

    def task() -> ShardTask:
        first_row = num_shards * samples_per_shard
        return ShardTask(folder, shard_name(kind, num_shards), first_row, tuple(pieces))

    pieces: list[Piece] = []
    num_shards = samples = done = 0
    for spool in spools:
        lengths = spool.rows()["length"].astype(np.int64)
        offsets = np.cumsum(lengths) - lengths
        of_spool = np.flatnonzero(kept[done : done + len(lengths)])
        done += len(lengths)
        while len(of_spool):
            part = of_spool[: samples_per_shard - samples]
            of_spool = of_spool[len(part) :]
            pieces.append(Piece(spool.path, offsets[part], lengths[part]))
            samples += len(part)
            if samples == samples_per_shard:
                yield task()
                num_shards += 1
                pieces, samples = [], 0
    if samples:
        yield task()


def write_shard(task: ShardTask) -> tuple[ShardInfo, int, bool]:
    """Write one shard, its index and its completion note, unless all three exist.

    Returns:
        The shard's entry in the manifest, the bytes of its samples, and whether it existed before.

    Raises:
        DamageError: A spool is damaged.
        OSError: The shard cannot be written.
    """
    note = (task.folder / task.name).with_suffix(".done")
    former = _finished(note, task)
    if former is not None:
        return former, task.num_bytes, True
    shard = ShardFile(task.folder, task.name)
    try:
        row = task.first_row
        for piece in task.pieces:
            start = int(piece.offsets[0])
            data = memoryview(
                read_at(piece.spool, start, int(piece.offsets[-1] + piece.lengths[-1]) - start)
            )
            for offset, length in zip(piece.offsets.tolist(), piece.lengths.tolist(), strict=True):
                shard.add(row, bytes(data[offset - start : offset - start + length]))
                row += 1
        info = shard.close()
    except BaseException as error:
        shard.abort(error)
        raise
    write_json_atomic(note, asdict(info))
    return info, task.num_bytes, False


def _finished(note: Path, task: ShardTask) -> ShardInfo | None:
    """Return an earlier build's entry for the shard, if all its files exist."""
    if not note.exists():
        return None
    try:
        info = read_json(note, ShardInfo)
        tar = task.folder / task.name
        whole = tar.stat().st_size == info.bytes and tar.with_suffix(".idx").exists()
    except (DamageError, OSError):
        return None
    ours = (info.name, info.samples) == (task.name, task.num_samples)
    return info if ours and whole else None
