"""The token ids of an article set: what the column stores, and what may be asked of it."""

from functools import cached_property
from pathlib import Path

import numpy as np

from shards.columns import ColumnReader, repair_command
from shards.errors import ColumnError
from shards.reader import ShardSet
from shards.texts import TextView
from shards.tokenize import FIELDS, SKIPPED, TOKENIZER_FOLDER, TOKENS


class TokenColumn:
    """The token ids of an article set, by row.

    Attributes:
        reader: the column underneath.
        tokenizer_sha256: hash of the tokenizer.
        vocab_size: one more than the largest id.
        pad_id: id of padding.
        prefix_ids: ids before each text ([CLS]).
        suffix_ids: ids after each text ([SEP]).
        title_tokens: longest title stored, special tokens included.
        body_tokens: longest body stored, special tokens included.
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
        self.title_tokens: int = made_from["title_tokens"]
        self.body_tokens: int = made_from["body_tokens"]
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
            raise ColumnError(
                f"{column.tokenizer_dir} is missing; run `{repair_command(shard_set, TOKENS)}`"
            )
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

    def stored_tokens(self, field: str) -> int:
        """Longest text of ``field`` that can be asked for, special tokens included."""
        if field not in FIELDS:
            raise ColumnError(f"texts are {' and '.join(FIELDS)}, not {field!r}")
        return self.title_tokens if field == "title" else self.body_tokens

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

    def check(self, field: str, max_tokens: int) -> None:
        """Raise ColumnError where less of a field is stored than is asked for."""
        stored = self.stored_tokens(field)
        if max_tokens > stored:
            shard_set = self.reader.shard_set
            raise ColumnError(
                f"{max_tokens} tokens of each {field} are asked for, the column {self.folder.name} "
                f"stores {stored}; lower data.max_{field}_tokens, or run "
                f"`{repair_command(shard_set, TOKENS)} --{field}-tokens {max_tokens}`"
            )
        if max_tokens <= self.num_special:
            raise ColumnError(
                f"{max_tokens} tokens of each {field} leave no room beside {self.num_special} "
                "special tokens"
            )
