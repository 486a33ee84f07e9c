"""Show one sample by row or id, with its tokens and the cut text."""

import json
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from shards.column_info import TOKENS
from shards.columns import ColumnReader, list_columns
from shards.errors import ColumnError, DamageError, UsageError
from shards.pretrained import load_backend
from shards.reader import ShardSet
from shards.text_fields import field_text
from shards.tokens import TokenColumn

_REST = 60


def find_row(shard_set: ShardSet, sample_id: str) -> int:
    """Find the row of the first sample with an id by reading the set.

    Raises:
        UsageError: no sample has the id.
        DamageError: an earlier sample is damaged.
    """
    # Comparing bytes excludes most samples, and is much cheaper than decoding them.
    needles = {
        json.dumps(sample_id, ensure_ascii=ascii_only).encode() for ascii_only in (True, False)
    }
    for row in range(shard_set.num_rows):
        payload = shard_set.payload(row)
        if any(needle in payload for needle in needles) and (
            str(shard_set.sample(row).get("id")) == sample_id
        ):
            return row
    raise UsageError(
        f"{shard_set.path} has no sample with the id {sample_id!r} among its {shard_set.num_rows:,}"
    )


def with_titles(
    sample: dict[str, Any], row_fields: Iterable[str], articles: ShardSet
) -> dict[str, Any]:
    """Replace the row numbers in some fields of a sample by titles.

    Raises:
        DamageError: A field names a row that the article set lacks.
    """
    for name in row_fields:
        if wrong := [row for row in sample[name] if not 0 <= row < articles.num_rows]:
            raise DamageError(
                f"{name} names row {wrong[0]} of {articles.location}, which has "
                f"{articles.num_rows} rows; build the set again"
            )
    return sample | {
        name: [articles.sample(row)["title"] for row in sample[name]] for name in row_fields
    }


def token_lines(shard_set: ShardSet, row: int) -> Iterator[str]:
    """Describe line by line what each token column of the set holds of a sample."""
    for info in list_columns(shard_set, TOKENS):
        yield ""
        yield info.folder.name
        try:
            column = TokenColumn(ColumnReader.open_folder(shard_set, info.folder.name))
        except ColumnError as error:
            yield f"  {error}"
            continue
        yield from _column_lines(column, shard_set.sample(row), row)


def _column_lines(column: TokenColumn, sample: dict[str, Any], row: int) -> Iterator[str]:
    tokenizer = load_backend(column.tokenizer_dir)
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    for field, limit in column.limits.items():
        text = field_text(sample, field)
        ids = column.batch(field, np.array([row]), limit)[0][0].tolist()
        whole = tokenizer.encode(text, add_special_tokens=False)
        stored = len(ids) - column.num_special
        cut = len(whole.ids) - stored
        yield f"  {field}: {len(ids):,} tokens of at most {limit:,}" + (
            f", {cut:,} more are cut" if cut > 0 else ""
        )
        yield from _wrapped("pieces", (str(tokenizer.id_to_token(i)) for i in ids))
        yield from _wrapped("ids", map(str, ids))
        if cut > 0:
            rest = text[whole.offsets[stored][0] :]
            more = " …" if len(rest) > _REST else ""
            yield f"    cut     {len(rest):,} characters: {' '.join(rest[:_REST].split())}{more}"


def _wrapped(name: str, words: Iterable[str]) -> list[str]:
    return textwrap.wrap(
        " ".join(words),
        width=100,
        initial_indent=f"    {name:<8}",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )
