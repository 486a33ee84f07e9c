"""Interface of a teacher signal: one kind of stored column, from its identity to its repair.

A signal is one column of one teacher. Its class defines everything that filling, planning, status,
verification, removal and reading need. Two methods mirror each other: ``encode`` computes a
teacher's outputs for rows, ``read`` returns the stored outputs of rows.

Shapes: N rows, D vectors of a ragged tensor, E news width.
"""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from shards.column_kinds import ColumnKind, Types
from shards.columns import ColumnReader, describe
from shards.files import fingerprint
from shards.reader import ShardSet
from shards.texts import TextView
from trainer.errors import ColumnError
from trainer.export.folder import Export
from trainer.teacher_server.cells import CELL_BYTES, Target
from trainer.teacher_server.follow import Follower
from trainer.teacher_server.kinds import kinds_of, stages
from trainer.teacher_server.request import Source
from trainer.teacher_server.storage import DTYPES, Ragged, Values, gather_values, store_values
from trainer.teacher_server.storage import vector_bytes as bytes_of_vector

if TYPE_CHECKING:
    from trainer.teacher_server.fill import Filler
    from trainer.teacher_server.outputs import TeacherModel

Count = Callable[[int], None] | None
"""Called with the work of every batch; an exception that it raises ends the work."""
Said = Mapping[str, Values]
"""Values of some rows, by tensor name."""
Tensors = dict[str, np.ndarray]
"""A cell's tensors as stored."""
FORMAT = 1
_SETS = {"articles": "--articles", "impressions": "--clicks"}
"""Kinds of shard sets, each with the option of ``tnr teachers`` that names one."""


class Errors(NamedTuple):
    """Largest errors of stored against recomputed values."""

    what: str
    """Name of the tensor or other value that was compared."""
    absolute: float
    relative: float
    """For vectors: length of the difference over the vector's length, the largest over the rows.
    For scores: the largest difference over the largest score."""
    share: float
    """The largest absolute error over the largest value, which must stay below the tolerance."""
    of: str
    """Reference of ``relative``, in words."""
    mend: str = "the folder"
    """What to delete to have it filled again."""

    def __str__(self) -> str:
        """Format the errors as a part of a line."""
        return f"{self.what} {self.absolute:.1e} ({self.relative:.1e} of the {self.of})"

    @classmethod
    def between(cls, what: str, stored: np.ndarray, live: np.ndarray) -> Self:
        """Compare vectors [N, E] or scores [N]; with different shapes, everything differs."""
        if stored.shape != live.shape:
            return cls(what, np.inf, np.inf, np.inf, "norm")
        off = stored.astype(np.float32) - live
        absolute = float(np.abs(off).max(initial=0.0))
        share = absolute / (float(np.abs(live).max(initial=0.0)) or 1.0)
        if live.ndim == 1:
            return cls(what, absolute, share, share, "largest")
        norms_N = np.maximum(np.linalg.norm(live, axis=1), np.finfo(np.float32).tiny)
        relative = float((np.linalg.norm(off, axis=1) / norms_N).max(initial=0.0))
        return cls(what, absolute, relative, share, "norm")


class Signal(ColumnKind, ABC):
    """One column of one teacher; a subclass is one kind of signal.

    A subclass must define ``name``, :meth:`identity`, :meth:`encode`, and either ``vectors`` or
    :meth:`row_bytes`. The rest follows from these, and may be overridden.

    Args:
        teacher: The teacher, opened but not loaded.
        source: Shard sets, storage type and precision of the column.

    Raises:
        ModelError: The teacher is of the wrong kind for this signal.
    """

    over: ClassVar[str] = "articles"
    """Kind of the shard set whose rows the column has."""
    vectors: ClassVar[tuple[str, ...]] = ()
    """Tensors that hold one vector [E] or one value per row."""
    extra: ClassVar[str] = ""
    """Extra files next to the cells, in words; see :meth:`check_extra`."""

    def __init__(self, teacher: Export, source: Source) -> None:
        """Compute the column's identity; nothing on disk is read except tokens."""
        self.teacher = teacher
        self.source = source
        self.target = Target(source.over(self.over), self.name, self.identity())
        self.shard_set = self.target.shard_set
        self.made_from = self.target.made_from

    # Identity

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything that determines the values, as JSON values; the key of the column.

        Raises:
            ModelError: The teacher is of the wrong kind for this signal.
        """

    @property
    def dtype(self) -> str:
        """Storage type of the values."""
        return self.source.dtype

    @property
    def which(self) -> str:
        """Distinguishes several columns of one teacher in messages; begins with a space."""
        return ""

    @property
    def folder(self) -> Path:
        """The column's folder, which may not exist."""
        return describe(*self.target).folder

    # Work and sizes

    def texts(self) -> Sequence[TextView]:
        """Return views of the texts to encode; empty if rows are counted."""
        return ()

    @cached_property
    def work(self) -> list[int]:
        """Work of each cell, at least 1: tokens to encode, or else rows.

        The cost of a user vector and its scores is a small part of a token's.
        """
        texts, starts = self.texts(), self.shard_set.shard_starts.tolist()
        counted = [
            sum(int(view.lengths(np.arange(begin, end)).sum()) for view in texts)
            if texts
            else end - begin
            for begin, end in pairwise(starts)
        ]
        return [max(units, 1) for units in counted]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Bytes of each cell by formula, int64[shards], with header and record rounded up."""
        return self.row_bytes() + CELL_BYTES

    def row_bytes(self) -> np.ndarray:
        """Return the bytes of the tensors of each cell, int64[shards]."""
        return np.diff(self.shard_set.shard_starts) * (len(self.vectors) * self.vector_bytes)

    @property
    def width(self) -> int:
        """Width of the teacher's vectors."""
        return int(self.teacher.info["model_settings"]["news_dim"])

    @property
    def vector_bytes(self) -> int:
        """Bytes of one stored vector."""
        return bytes_of_vector(self.width, self.dtype)

    @classmethod
    def most_bytes(cls, rows: Mapping[str, int], width: int, dtype: str) -> int:
        """Return the largest size of a teacher's column, before sets and teachers exist.

        Args:
            rows: Numbers of ``articles``, ``impressions`` and their ``candidates``.
            width: Width of the teacher's vectors.
            dtype: Storage type.
        """
        return rows[cls.over] * len(cls.vectors) * bytes_of_vector(width, dtype)

    # Values

    @abstractmethod
    def encode(self, model: "TeacherModel", rows: np.ndarray, count: Count = None) -> Said:
        """Compute the teacher's outputs for rows, in float32.

        Args:
            model: The teacher in memory.
            rows: int64[N] rows of the shard set.
            count: Called with the work of every batch.

        Returns:
            Values [N, ...] by tensor name, or ragged values with their offsets.
        """

    def read(self, reader: ColumnReader, rows: np.ndarray) -> Said:
        """Return the stored values of rows, int64[N], by the names of :meth:`encode`."""
        return gather_values(reader, rows)

    def cell(self, filler: "Filler", shard: int, count: Count) -> Tensors | None:
        """Compute the tensors of a cell as stored.

        Args:
            filler: Has the teacher in memory, and computes the cells that this cell needs.
            shard: Number of the shard.
            count: Called with the work of every batch.

        Returns:
            The tensors; None if another process has finished the teacher meanwhile.
        """
        return store_values(self.encode(filler.model, self.rows(shard), count), self.dtype)

    def rows(self, shard: int) -> np.ndarray:
        """Return the row numbers of one shard, int64."""
        return np.array(self.shard_set.rows_of(shard), dtype=np.int64)

    def compare(
        self, model: "TeacherModel", reader: ColumnReader, rows: np.ndarray
    ) -> list[Errors]:
        """Return the errors of stored values of rows against the teacher's outputs."""
        stored, live = self.read(reader, rows), self.encode(model, rows)
        found = []
        for what, values in live.items():
            kept = stored[what]
            if isinstance(kept, Ragged) and isinstance(values, Ragged):
                alike = np.array_equal(kept.offsets, values.offsets)
                kept, values = kept.values if alike else np.empty(()), values.values
            assert isinstance(kept, np.ndarray) and isinstance(values, np.ndarray)
            found.append(Errors.between(what, kept, values))
        return found

    # Extra files, and other columns

    def check_extra(self) -> None:
        """Check the extra files next to the cells.

        Raises:
            DamageError: A file is missing or damaged; the message names the remedy.
        """

    def write_extra(self, model: "TeacherModel") -> None:
        """Write the extra files next to the cells, before the first cell."""

    @cached_property
    def working(self) -> "Signal | None":
        """Working column that cells are computed from, kept until the teacher is complete."""
        return None

    @classmethod
    def made_of(cls, signal: "Signal") -> list[tuple[Target, str]]:
        """Return the columns of this kind on disk that were made from ``signal``.

        Each column comes with words that distinguish it from the others.
        """
        return []

    # Opening and repair

    def open(self, follower: Follower | None = None) -> ColumnReader:
        """Open the column for reading.

        Args:
            follower: Waits for cells that are still being filled; None refuses an incomplete
                column.

        Raises:
            ColumnError: The column does not exist, differs in a field, or is incomplete; the
                message names the field and the command that repairs it.
        """
        if follower is not None:
            return follower.open(*self.target, str(self.teacher.folder), self.command)
        try:
            return ColumnReader.open(*self.target)
        except ColumnError as error:
            raise self.unusable(error) from error

    def unusable(self, error: Exception) -> ColumnError:
        """Return an error with the reason and the command that fills the column."""
        return ColumnError(
            f"no usable {self.name} column{self.which} of teacher {self.teacher.folder}: {error}. "
            f"Repair: {self.command}"
        )

    @property
    def command(self) -> str:
        """The complete command that fills the column."""
        needed = {kind.over for kind in self._stage()[1]} | {"articles"}
        sets = {over: self.source.over(over).location for over in needed}
        return self._cache(sets, str(self.teacher.folder), vars(self.source))

    @classmethod
    def repair(cls, shard_set: ShardSet, made_from: Mapping[str, Any]) -> str:
        """See :meth:`shards.column_kinds.ColumnKind.repair`."""
        return cls._cache({cls.over: shard_set.location}, "MODELS", made_from)

    @classmethod
    def _stage(cls) -> tuple[str, Sequence[type["Signal"]]]:
        """Return the stage that fills this kind, and the kinds of that stage."""
        found = ((stage, kinds_of(stage)) for stage in stages())
        return next((s, kinds) for s, kinds in found if any(issubclass(cls, k) for k in kinds))

    @classmethod
    def _cache(cls, sets: Mapping[str, str], models: str, settings: Mapping[str, Any]) -> str:
        stage, kinds = cls._stage()
        words = ["tnr", "teachers", "cache", "--stage", stage]
        needed = {kind.over for kind in kinds} | {"articles"}
        for over in (one for one in _SETS if one in needed):
            words += [_SETS[over], sets.get(over, "SET")]
        for key in ("dtype", "compute"):
            words += [f"--{key}", str(settings[key])] if key in settings else []
        return shlex.join([*words, "--models", models])

    @classmethod
    def wrong_tensor(cls, made_from: Mapping[str, Any], found: Types) -> str | None:
        """See :meth:`shards.column_kinds.ColumnKind.wrong_tensor`."""
        settings, stored = made_from.get("model_settings"), made_from.get("dtype")
        width = settings.get("news_dim") if isinstance(settings, dict) else None
        if not isinstance(width, int) or stored not in DTYPES:
            return None
        for tensor in cls.vectors:
            if tensor not in found:
                return f"tensor {tensor} is missing"
            dtype, shape = found[tensor]
            if (dtype.name, shape) != (stored, (width,)):
                return f"{tensor} is {dtype}{list(shape)}, expected {stored}[{width}]"
        return None


def teacher_identity(teacher: Export) -> dict[str, Any]:
    """Return the fields that distinguish one teacher's outputs, whatever the data.

    The fields that it reads of an article are included only if they are not the title alone, so
    that columns from before there was a choice stay valid.
    """
    info = teacher.info
    title_alone = (("title", info["max_title_tokens"]),)
    other = {"news_text": [list(part) for part in teacher.news_parts]}
    return ({} if teacher.news_parts == title_alone else other) | {
        "format": FORMAT,
        "teacher_weights_sha256": teacher.weights_sha256,
        "teacher_kind": info["kind"],
        "model_settings": info["model_settings"],
        "tokenizer_sha256": info["tokenizer_sha256"],
        "max_title_tokens": info["max_title_tokens"],
        "pad_to_max": info["pad_to_max"],
    }


def article_identity(teacher: Export, source: Source, dtype: str, **lengths: int) -> dict[str, Any]:
    """Return the identity of a teacher's outputs for articles.

    ``lengths`` are those of texts that the teacher reads besides titles.

    If damaged articles had empty texts, the identity includes these articles: once the shard is
    repaired and tokenized again, they have other texts. A reader of the column may not have the
    teacher's tokens; then these articles are unknown, and a column that was filled without any is
    asked for.
    """
    rows = teacher.damaged_rows(source.articles)
    return teacher_identity(teacher) | {
        **({"damaged_rows": fingerprint(rows)} if rows else {}),
        **lengths,
        "articles": source.articles.fingerprint,
        "dtype": dtype,
        "compute": source.compute,
    }
