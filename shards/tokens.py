"""The token ids of an article set: what the column stores, and what may be asked of it."""

from functools import cached_property
from pathlib import Path

import numpy as np

from shards.column_info import TOKENIZER_FOLDER, TOKENS
from shards.columns import ColumnReader, repair_command
from shards.errors import ColumnError
from shards.reader import ShardSet
from shards.text_fields import DEFAULT_TOKENS, TEXT_FIELDS, listed, tokenize_command
from shards.texts import TextView
from shards.tokenize import SKIPPED


class TokenColumn:
    """The token ids of an article set, by row.

    Attributes:
        reader: the column underneath.
        tokenizer_sha256: hash of the tokenizer.
        vocab_size: one more than the largest id.
        pad_id: id of padding.
        prefix_ids: ids before each text ([CLS]).
        suffix_ids: ids after each text ([SEP]).
        limits: fields that are stored, each with its longest text, special tokens included.
        tokenizer_dir: folder of the tokenizer, for ``AutoTokenizer.from_pretrained``.
    """

    def __init__(self, reader: ColumnReader) -> None:
        """Use :meth:`open`."""
        made_from = reader.made_from
        self.reader = reader
        self.fingerprint = reader.fingerprint
        self.folder = reader.folder
        self.num_rows = reader.num_rows
        self.tokenizer_sha256: str = made_from["tokenizer_sha256"]
        self.vocab_size: int = made_from["vocab_size"]
        self.pad_id: int = made_from["pad_id"]
        self.prefix_ids: list[int] = made_from["prefix_ids"]
        self.suffix_ids: list[int] = made_from["suffix_ids"]
        self.limits: dict[str, int] = {
            field: made_from[f"{field}_tokens"] for field in made_from["fields"]
        }
        self.tokenizer_dir: Path = reader.folder / TOKENIZER_FOLDER

    @classmethod
    def open(cls, shard_set: ShardSet, folder_name: str | None = None) -> "TokenColumn":
        """Open the token column of an article set.

        Args:
            shard_set: the set.
            folder_name: which one (``tokens-0123456789ab``); None takes the only one.

        Raises:
            ColumnError: there is none, there are several, or it is not complete; the message says
                what to run.
        """
        if folder_name is None:
            reader = ColumnReader.open(shard_set, TOKENS)
        else:
            reader = ColumnReader.open_folder(shard_set, folder_name)
            if reader.name != TOKENS:
                raise ColumnError(f"{reader.folder} holds {reader.name!r}, not tokens")
        column = cls(reader)
        if not column.tokenizer_dir.is_dir():
            repair = repair_command(shard_set, TOKENS, reader.made_from)
            raise ColumnError(f"{column.tokenizer_dir} is missing; run `{repair}`")
        return column

    @cached_property
    def skipped_rows(self) -> np.ndarray:
        """Rows whose samples were damaged when they were tokenized, int64[k] ascending.

        Their texts are empty here; whoever trains on the column leaves them out.
        """
        starts = self.reader.shard_set.shard_starts
        found = [np.empty(0, dtype=np.int64)]
        for shard in self.reader.cells_with(SKIPPED):
            found.append(np.flatnonzero(self.reader.cell(shard)[SKIPPED]) + starts[shard])
        return np.concatenate(found)

    @property
    def num_special(self) -> int:
        """Special tokens added to each text."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    def view(self, *parts: tuple[str, int]) -> TextView:
        """Texts of (field, longest text in tokens) as one model reads them; several are joined."""
        return TextView(self, parts)

    def lengths(self, field: str, rows: np.ndarray, max_tokens: int) -> np.ndarray:
        """:meth:`shards.texts.TextView.lengths` of one field."""
        return self.view((field, max_tokens)).lengths(rows)

    def batch(
        self, field: str, rows: np.ndarray, max_tokens: int, pad_to_max: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`shards.texts.TextView.batch` of one field."""
        return self.view((field, max_tokens)).batch(rows, pad_to_max)

    def check(self, field: str, max_tokens: int | None = None) -> None:
        """Refuse what the column cannot give.

        Args:
            field: which texts.
            max_tokens: the longest one in tokens, special tokens included; None asks for no length.

        Raises:
            ColumnError: the field is not stored, or less of it than is asked for; the message has
                the command that makes a column which stores it.
        """
        if (problem := self.problem(field, max_tokens)) is not None:
            raise ColumnError(problem)

    def problem(self, field: str, max_tokens: int | None = None) -> str | None:
        """Why :meth:`check` refuses it, or None."""
        if field not in TEXT_FIELDS:
            return f"texts are {listed(TEXT_FIELDS)}, not {field!r}"
        if field not in self.limits:
            return (
                f"the column {self.folder.name} stores {listed(list(self.limits))}, not the "
                f"{field}; run `{self._command(field, max_tokens or DEFAULT_TOKENS[field])}`, "
                "which makes a column beside it, for data.tokens to name"
            )
        if max_tokens is None:
            return None
        if max_tokens > self.limits[field]:
            return (
                f"{max_tokens} tokens of each {field} are asked for, the column {self.folder.name} "
                f"stores {self.limits[field]}; lower data.max_{field}_tokens, or run "
                f"`{self._command(field, max_tokens)}`, which makes a column beside it, for "
                "data.tokens to name"
            )
        if max_tokens <= self.num_special:
            return (
                f"{max_tokens} tokens of each {field} leave no room beside {self.num_special} "
                "special tokens"
            )
        return None

    def _command(self, field: str, tokens: int) -> str:
        """What makes a column that stores all that this one does, and this of ``field``."""
        location = self.reader.shard_set.location
        return tokenize_command(location, self.tokenizer_dir, self.limits | {field: tokens})
