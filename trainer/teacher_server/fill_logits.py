"""Filling columns of stage I logits from stored vectors: no model is loaded, and no torch.

Shapes: N rows of a shard, K of a chunk, C titles a sample, E news width.
"""

from collections.abc import Callable, Sequence

import numpy as np

from shards.cells import data_path
from shards.columns import ColumnReader, ColumnWriter
from trainer.engine.signals import StopRequest
from trainer.errors import StopForRequeue
from trainer.teacher_server.identity import LOGITS
from trainer.teacher_server.logits import SCORES, Logits
from trainer.teacher_server.request import Cell, cells_of_part
from trainer.teacher_server.signals import StoredTextSignals
from trainer.teacher_server.sizes import CELL_BYTES, Need, check_room, mb, missing_cells
from trainer.teacher_server.storage import gather_vectors, store_plain, value_bytes
from trainer.teacher_server.watch import CellWork, FillProgress

_CHUNK = 2048
"""Samples whose vectors are in memory together: at C = 10 and E = 256, 20 MiB in float32."""


def fill_logits(
    logits: Logits, part: tuple[int, int], report: Callable[[str], None], stop: StopRequest
) -> int:
    """Fill the cells of a part, epoch after epoch and in it teacher after teacher.

    Args:
        logits: Which teachers, draws and epochs.
        part: (I, N): the I-th of N parts of the cells, counted from 0.
        report: Gets a line before the work starts.
        stop: Asked between cells whether to go on.

    Returns:
        How many cells were computed (not skipped).

    Raises:
        ColumnError: The vectors of a teacher are not all there (the command that fills them is
            named), or a logit is not finite in the stored type; the rows are named.
        DataError: The disk has no room for what is missing.
        StopForRequeue: The process was asked to stop; what is committed stays.
    """
    folders = [teacher.folder for teacher in logits.teachers]
    vectors = StoredTextSignals(logits.articles, folders, logits.dtype, logits.compute).columns
    columns = [(epoch, m) for epoch in logits.epochs for m in range(len(vectors))]
    targets = [logits.target(logits.teachers[m], epoch) for epoch, m in columns]
    missing = [set(missing_cells(target)) for target in targets]
    cells = _cells(logits, len(columns))
    mine = cells_of_part(cells, *part)
    lacking, todo = ([c for c in some if c.shard in missing[c.teacher]] for some in (cells, mine))
    # Of all parts: the tasks of an array share one disk.
    room = Need(logits.articles.columns_dir, _bytes(logits, lacking))
    check_room([room], "make room, or name fewer epochs")
    writers = [ColumnWriter(*target) for target in targets]
    work, size = sum(cell.work for cell in todo), _bytes(logits, todo)
    report(f"{len(columns)} columns of logits: {len(todo)} cells to fill, {mb(size)}")
    with FillProgress(work, len(todo), size, unit="logits") as progress:
        for done, cell in enumerate(todo):
            try:
                stop.check()
            except StopForRequeue as stopped:
                raise StopForRequeue(
                    f"{stopped}: {len(todo) - done} of {len(mine)} cells are left; what is "
                    "committed stays, run the same command again to go on"
                ) from stopped
            epoch, m = columns[cell.teacher]
            progress.teacher = f"epoch {epoch}, teacher {m + 1} of {len(vectors)}"
            writer, counted = writers[cell.teacher], CellWork(progress, cell.work)
            if writer.is_committed(cell.shard):
                counted.drop()
                continue
            scores_NC = compute_logits(logits, vectors[m], epoch, cell.shard)
            writer.write(cell.shard, {SCORES: store_plain(scores_NC, logits.dtype)})
            info = logits.articles.manifest.shards[cell.shard]
            counted.done(info.samples, data_path(writer.folder, info).stat().st_size)
    return progress.cells_done


def _cells(logits: Logits, columns: int) -> list[Cell]:
    """Every cell; its ``teacher`` is the place of its column among all, its work in logits."""
    num_titles = 1 + logits.negatives.count
    return [
        Cell(number, LOGITS, shard, max(info.samples * num_titles, 1))
        for number in range(columns)
        for shard, info in enumerate(logits.articles.manifest.shards)
    ]


def _bytes(logits: Logits, cells: Sequence[Cell]) -> int:
    return sum(cell.work * value_bytes(logits.dtype) + CELL_BYTES for cell in cells)


def compute_logits(logits: Logits, vectors: ColumnReader, epoch: int, shard: int) -> np.ndarray:
    """Dot products of a shard's bodies with their own titles and their negatives', in float32.

    Args:
        logits: How the negatives are drawn.
        vectors: A teacher's stored vectors.
        epoch: Of the draw.
        shard: Number of the shard.

    Returns:
        float32[N, C], own title first; zeros for damaged articles, which no batch names.
    """
    first, end = logits.articles.shard_starts[shard : shard + 2].tolist()
    scores_NC = np.zeros((end - first, 1 + logits.negatives.count), np.float32)
    kept = np.setdiff1d(np.arange(first, end), logits.negatives.order.skipped)
    for start in range(0, len(kept), _CHUNK):
        own_K = kept[start : start + _CHUNK]
        negatives = logits.negatives.of(own_K, np.full(len(own_K), epoch))
        titles_KC = np.concatenate([own_K[:, None], negatives], axis=1)
        bodies_KE = gather_vectors(vectors, "body", own_K).astype(np.float32)
        titles = gather_vectors(vectors, "title", titles_KC.ravel()).astype(np.float32)
        titles_KCE = titles.reshape(*titles_KC.shape, -1)
        scores_NC[own_K - first] = np.einsum("ke,kce->kc", bodies_KE, titles_KCE)
    return scores_NC
