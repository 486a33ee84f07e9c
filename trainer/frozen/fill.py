"""Filling of a column of frozen states, on all ranks of a run.

Every rank computes its share, then any cell that is still missing, so that no rank waits for a
slower or dead one. A cell is committed whole or not at all, and existing cells are kept. So a
killed run continues where it was, and two runs at once leave one valid file per cell.

For a set at a URL, the column lies in the cache of each node, among columns made there: these are
neither evicted nor counted in ``data.cache_gib``. The ranks of a node then fill the whole column,
because those of another node commit elsewhere.

The column takes ``tokens x width x bytes per value``: 2.2 GB for MIND's 101,527 titles at a mean of
14 tokens, 768 wide, in float16.
"""

import io
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from shards.cells import data_path
from shards.columns import ColumnWriter, describe, differing_fields, list_columns
from shards.ragged import offsets_from_lengths, ranges
from shards.stopping import Pace
from shards.texts import TextView
from trainer.engine.signals import StopRequest
from trainer.errors import ModelError, StopForRequeue
from trainer.evaluate.encode import autocast, inference
from trainer.frozen.states import STATES
from trainer.models.news_encoder import NewsEncoder
from trainer.teacher_server.cells import (
    CELL_BYTES,
    Cell,
    Need,
    Target,
    cells_of_part,
    check_room,
    mb,
    missing_cells,
)
from trainer.teacher_server.ranks import Place
from trainer.teacher_server.watch import CellWork, FillProgress


def column_bytes(tokens: int, texts: int, width: int, dtype: str) -> int:
    """Return the bytes of a column, states and offsets, without its cells' headers."""
    return tokens * width * np.dtype(dtype).itemsize + 8 * texts


class StateFiller:
    """Filler of a column, with an encoder in memory.

    Args:
        target: The column.
        encoder: Encoder with a cut backbone, on ``device``.
        texts: Texts that are read of an article.
        here: This rank among the others.
        batch_tokens: Tokens per forward pass, padding included.
        device: Device of the encoder.
        stop: Asked between batches whether to continue; an almost finished cell is finished.
        report: Receives lines for people; called only on rank 0.
        tick: Called after every batch.
    """

    def __init__(
        self,
        target: Target,
        encoder: NewsEncoder,
        texts: TextView,
        *,
        here: Place,
        batch_tokens: int,
        device: str,
        stop: StopRequest,
        report: Callable[[str], None] = print,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.target = target
        self.encoder = encoder
        self.texts = texts
        self.here = here
        self.batch_tokens = batch_tokens
        self.device = device
        self.stop = stop
        self.report = report
        self.tick = tick
        self.dtype = str(target.made_from["dtype"])

    def fill(self) -> None:
        """Compute the missing cells; the column is complete when this returns.

        Raises:
            DataError: The disk is too small for the column.
            ColumnError: A state is not finite in the storage type (names the rows), or the folder
                cannot be written.
            ModelError: The device has too little memory.
            StopForRequeue: The process was asked to stop; committed cells stay.
        """
        missing = set(missing_cells(self.target))
        if not missing:
            return
        cells = self._cells()
        todo = [cell for cell in cells if cell.shard in missing]
        size = sum(self._bytes(cell) for cell in todo)
        check_room([Need(self.target.shard_set.columns_dir, size)], "make room")
        if self.here.rank == 0:
            self._announce(len(todo), size)
        writer = ColumnWriter(*self.target)
        own = cells_of_part(todo, self.here.rank, self.here.world_size)
        try:
            self._compute(writer, own)
            self._help(writer, cells)
        except StopForRequeue as stopped:
            raise StopForRequeue(
                f"{stopped}: {len(writer.missing())} of {len(cells)} cells of frozen layers' "
                "states are left; committed cells stay, run the same command again to continue"
            ) from stopped
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"frozen layers on {self.device}: out of memory with data.batch_tokens "
                f"{self.batch_tokens}; try {self.batch_tokens // 2}"
            ) from error

    def _cells(self) -> list[Cell]:
        """Return every cell, with its tokens as its work."""
        starts = self.target.shard_set.shard_starts.tolist()
        tokens = (
            int(self.texts.lengths(np.arange(begin, end)).sum()) for begin, end in pairwise(starts)
        )
        return [Cell(0, shard, work) for shard, work in enumerate(tokens)]

    def _bytes(self, cell: Cell) -> int:
        rows = self.target.shard_set.manifest.shards[cell.shard].samples
        width = self.encoder.config.language_model.hidden_size
        return column_bytes(cell.work, rows, width, self.dtype) + CELL_BYTES

    def _announce(self, cells: int, size: int) -> None:
        asked = describe(*self.target)
        self.report(
            f"frozen layers: {cells} cells, {mb(size)}, to fill in {asked.folder} by "
            f"{self.here.world_size} processes, once for all runs with these layers"
        )
        others = [
            differing_fields(info.made_from, asked.made_from)
            for info in list_columns(self.target.shard_set, self.target.name)
            if info.fingerprint != asked.fingerprint
        ]
        if others:
            nearest = min(others, key=len)
            self.report(f"frozen layers: the nearest column there differs: {'; '.join(nearest)}")

    def _compute(self, writer: ColumnWriter, cells: list[Cell]) -> None:
        """Fill this rank's share; rank 0 shows progress."""
        work, size = sum(cell.work for cell in cells), sum(map(self._bytes, cells))
        stream = None if self.here.rank == 0 else io.StringIO()
        with FillProgress(work, len(cells), size, stream=stream) as progress:
            progress.teacher = "frozen layers"
            for cell in cells:
                counted = CellWork(progress, cell.work)
                if self._commit(writer, cell.shard, counted):
                    info = self.target.shard_set.manifest.shards[cell.shard]
                    size = data_path(writer.folder, info).stat().st_size
                    counted.done(info.samples, size)
                else:
                    counted.drop()

    def _help(self, writer: ColumnWriter, cells: list[Cell]) -> None:
        """Fill cells that other ranks have not committed yet, in this rank's own order."""
        order = np.random.default_rng(self.here.rank).permutation(len(cells))
        while writer.missing():
            for shard in order.tolist():
                self._commit(writer, shard, Pace(cells[shard].work))

    def _commit(self, writer: ColumnWriter, shard: int, work: Pace) -> bool:
        """Compute and commit one cell; return False if it exists by now."""
        self.stop.check()
        if writer.is_committed(shard):
            return False
        starts = self.target.shard_set.shard_starts
        writer.write(shard, self._tensors(np.arange(starts[shard], starts[shard + 1]), work))
        return True

    def _tensors(self, rows: np.ndarray, work: Pace) -> dict[str, np.ndarray]:
        """Return a cell's tensors: the states of the texts of some rows."""
        lengths = self.texts.lengths(rows)
        offsets = offsets_from_lengths(lengths)
        width = self.encoder.config.language_model.hidden_size
        values = np.empty((int(offsets[-1]), width), dtype=self.dtype)
        stored = getattr(torch, self.dtype)
        compute = str(self.target.made_from["compute"])
        with inference(self.encoder), autocast(self.device, compute):
            for group in self.texts.groups(rows, self.batch_tokens):
                ids_UL = torch.from_numpy(group.ids).to(self.device)
                mask_UL = torch.from_numpy(group.mask).to(self.device).bool()
                states_ULD = self.encoder.backbone.below(ids_UL, mask_UL)
                places = ranges(offsets[group.places], lengths[group.places])
                values[places] = states_ULD[mask_UL].to(stored).cpu().numpy()
                work.add(len(places))
                self.tick()
                self.stop.check(work.left_s)
        return {f"{STATES}.values": values, f"{STATES}.offsets": offsets}
