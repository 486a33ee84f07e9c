"""Read the token ids of an article set, and check requests against the column."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from shards.cell_tensors import VALUES
from shards.column_extras import TOKENIZER_SUMS, tokenizer_problem
from shards.column_info import TOKENIZER_FOLDER, TOKENS
from shards.columns import ColumnReader, check_numbers
from shards.errors import ColumnError, DamageError
from shards.manifest import Sha256
from shards.ragged import row_of_value
from shards.reader import ShardSet
from shards.text_fields import DEFAULT_TOKENS, TEXT_FIELDS, listed, tokenize_command
from shards.texts import TextView
from shards.tokenize import SKIPPED

_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


@dataclass(frozen=True)
class TokenSource:
    """The source of a token column, as far as readers need it."""

    tokenizer_sha256: Sha256
    vocab_size: _Id
    pad_id: _Id
    prefix_ids: list[_Id]
    suffix_ids: list[_Id]
    limits: dict[str, _Id]

    @classmethod
    def read(cls, made_from: dict[str, Any], where: object) -> "TokenSource":
        """Parse a column's ``made_from``.

        Raises:
            DamageError: An entry is missing or malformed, or an id is outside the vocabulary.
        """
        try:
            fields = msgspec.convert(made_from.get("fields"), list[str])
            limits = {field: made_from.get(f"{field}_tokens") for field in fields}
            source = msgspec.convert({**made_from, "limits": limits}, cls)
        except msgspec.ValidationError as error:
            raise DamageError(f"{where} does not describe a token column: {error}") from error
        if not fields or len(set(fields)) < len(fields):
            raise DamageError(f"{where} does not describe a token column: its fields are {fields}")
        largest = max([source.pad_id, *source.prefix_ids, *source.suffix_ids])
        if largest >= source.vocab_size or not set(fields) <= set(TEXT_FIELDS):
            raise DamageError(
                f"{where} does not describe a token column: it names the id {largest} of "
                f"{source.vocab_size} and the fields {', '.join(fields)}"
            )
        return source


class TokenColumn:
    """The token ids of an article set, by row.

    Attributes:
        reader: the column underneath.
        tokenizer_sha256: hash of the tokenizer.
        vocab_size: one more than the largest id.
        pad_id: id of padding.
        prefix_ids: ids before each text ([CLS]).
        suffix_ids: ids after each text ([SEP]).
        limits: stored fields, each with its length limit, including special tokens.
        tokenizer_dir: folder of the tokenizer, for ``AutoTokenizer.from_pretrained``.
    """

    def __init__(self, reader: ColumnReader) -> None:
        """Use :meth:`open`."""
        source = TokenSource.read(reader.made_from, reader.folder)
        check_numbers(reader, {field + VALUES: "u" for field in source.limits})
        self.reader = reader
        self.fingerprint = reader.fingerprint
        self.folder = reader.folder
        self.num_rows = reader.num_rows
        self.tokenizer_sha256 = source.tokenizer_sha256
        self.vocab_size = source.vocab_size
        self.pad_id = source.pad_id
        self.prefix_ids = source.prefix_ids
        self.suffix_ids = source.suffix_ids
        self.limits = source.limits
        self.tokenizer_dir: Path = reader.folder / TOKENIZER_FOLDER

    @classmethod
    def open(cls, shard_set: ShardSet, folder_name: str | None = None) -> "TokenColumn":
        """Open the token column of an article set.

        Args:
            shard_set: the set.
            folder_name: the column's folder (``tokens-0123456789ab``); None takes the only column.

        Raises:
            ColumnError: the set has no token column, several, or an incomplete one; the message has
                the command to run.
        """
        if folder_name is None:
            reader = ColumnReader.open(shard_set, TOKENS)
        else:
            reader = ColumnReader.open_folder(shard_set, folder_name)
            if reader.name != TOKENS:
                raise ColumnError(f"{reader.folder} holds {reader.name!r}, not tokens")
        column = cls(reader)
        if (problem := tokenizer_problem(column.folder)) is not None:
            raise ColumnError(
                f"{problem}; {tokenizer_remedy(shard_set, column.folder, column.limits)}"
            )
        return column

    def check_ids(
        self, field: str, values: np.ndarray, offsets: np.ndarray, rows: np.ndarray
    ) -> None:
        """Refuse ids outside the vocabulary: an encoder would read other memory, or crash.

        Args:
            field: field of the ids.
            values: ids of some rows, end to end.
            offsets: int64[n + 1], start of each row's ids.
            rows: int64[n].

        Raises:
            DamageError: an id is too large; the message names its row and shard.
        """
        if not len(values) or int(values.max()) < self.vocab_size:
            return
        place = int(np.argmax(values))
        row = int(rows[row_of_value(offsets, np.array([place]))[0]])
        shard = self.reader.shard_set.shards[self.reader.shard_set.locate(row)[0]]
        raise DamageError(
            f"{self.folder}: the {field} of row {row} ({shard.name}) has the token id "
            f"{values[place]}, the vocabulary has {self.vocab_size} ids; delete {shard.stem}.json "
            f"there and run `{self.reader.repair}`"
        )

    @cached_property
    def skipped_rows(self) -> np.ndarray:
        """Find rows whose samples were damaged when they were tokenized, int64[k] ascending.

        Their texts are empty here; a training on the column must leave them out.
        """
        starts = self.reader.shard_set.shard_starts
        found = [np.empty(0, dtype=np.int64)]
        for shard in self.reader.cells_with(SKIPPED):
            found.append(np.flatnonzero(self.reader.cell(shard)[SKIPPED]) + starts[shard])
        return np.concatenate(found)

    @property
    def num_special(self) -> int:
        """Number of special tokens added to each text."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    def view(self, *parts: tuple[str, int]) -> TextView:
        """Make the view of (field, length limit in tokens) for one model; join several fields."""
        return TextView(self, parts)

    def lengths(self, field: str, rows: np.ndarray, max_tokens: int) -> np.ndarray:
        """Return :meth:`shards.texts.TextView.lengths` of one field."""
        return self.view((field, max_tokens)).lengths(rows)

    def batch(
        self, field: str, rows: np.ndarray, max_tokens: int, pad_to_max: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return :meth:`shards.texts.TextView.batch` of one field."""
        return self.view((field, max_tokens)).batch(rows, pad_to_max)

    def check(self, field: str, max_tokens: int | None = None) -> None:
        """Refuse a request that the column cannot meet.

        Args:
            field: field to read.
            max_tokens: length limit in tokens, including special tokens; None requests no length.

        Raises:
            ColumnError: the column does not store the field, or stores less than requested; the
                message has the command that makes a suitable column.
        """
        if (problem := self.problem(field, max_tokens)) is not None:
            raise ColumnError(problem)

    def problem(self, field: str, max_tokens: int | None = None) -> str | None:
        """Return the reason for which :meth:`check` refuses the request, or None."""
        if field not in TEXT_FIELDS:
            return f"texts are {listed(TEXT_FIELDS)}, not {field!r}"
        dtype, _ = self.reader.tensors.get(field + VALUES, (None, ()))
        if field in self.limits and (dtype is None or dtype.kind != "u"):
            return (
                f"{self.folder} holds no token ids of the {field}, but {dtype}; delete it and run "
                f"`{self.reader.repair}`"
            )
        if field not in self.limits:
            return (
                f"the column {self.folder.name} stores {listed(list(self.limits))}, not the "
                f"{field}; run `{self._command(field, max_tokens or DEFAULT_TOKENS[field])}`, "
                "which makes a further column, to be named with data.tokens"
            )
        if max_tokens is None:
            return None
        if max_tokens > self.limits[field]:
            return (
                f"{max_tokens} tokens of each {field} are requested, the column {self.folder.name} "
                f"stores {self.limits[field]}; lower data.max_{field}_tokens, or run "
                f"`{self._command(field, max_tokens)}`, which makes a further column, to be named "
                "with data.tokens"
            )
        if max_tokens <= self.num_special:
            return (
                f"{max_tokens} tokens of each {field} leave no room beside {self.num_special} "
                "special tokens"
            )
        return None

    def _command(self, field: str, tokens: int) -> str:
        """Return the command for a column that also stores ``tokens`` of ``field``."""
        location = self.reader.shard_set.location
        return tokenize_command(location, self.tokenizer_dir, self.limits | {field: tokens})


def tokenizer_remedy(shard_set: ShardSet, folder: Path, limits: Mapping[str, int]) -> str:
    """Say what to do if the tokenizer in a column's folder is damaged.

    Args:
        shard_set: the article set.
        folder: folder of the column.
        limits: field to the length limit of its stored texts.
    """
    command = tokenize_command(shard_set.location, "TOKENIZER", limits)
    left = " ".join(shlex.quote(str(folder / name)) for name in (TOKENIZER_FOLDER, TOKENIZER_SUMS))
    return f"remove {left} and run `{command}` with the tokenizer that it was made with"
