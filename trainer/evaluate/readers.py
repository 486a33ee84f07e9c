"""Whose list is asked for: a history named by ids, an impression of a log, or a user of a log."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from shards.progress import Progress
from trainer.errors import DamageError, UsageError

if TYPE_CHECKING:
    from shards.reader import ShardSet
    from trainer.evaluate.pairs import ClickLog


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A user: what was read, and what an impression of a log knows.

    Attributes:
        about: Where this is from, for people.
        history: int64[h], article rows, oldest first.
        shown: int64[c], the candidates of the impression, if it is of one.
        clicked: int64[k], those that are known to have been clicked.
    """

    about: str
    history: np.ndarray
    shown: np.ndarray = field(default_factory=_none)
    clicked: np.ndarray = field(default_factory=_none)


def reader_of_ids(articles: ShardSet, ids: Sequence[str]) -> Reader:
    """A history of articles by their own ids, oldest first.

    Raises:
        UsageError: An id is not there; the message names those that are most like it.
    """
    found = find_articles(articles, set(ids))
    missing = next((one for one in ids if one not in found), None)
    if missing is not None:
        with Progress(articles.num_rows, "look for similar ids", "articles") as bar:
            hint = _alike(missing, (one for _, one in _ids(articles, bar)))
        raise UsageError(
            f"{articles.location} has no article with the id {missing!r} among its "
            f"{articles.num_rows:,}{hint}"
        )
    return Reader(
        about="the history given" if ids else "a user without a history",
        history=np.array([found[one] for one in ids], dtype=np.int64),
    )


def find_articles(articles: ShardSet, ids: Collection[str]) -> dict[str, int]:
    """Rows of articles by their own ids, as far as they are there.

    One pass over the set, up to the last that is asked for; nothing else of it is kept.
    """
    found: dict[str, int] = {}
    with Progress(articles.num_rows, "find ids", "articles") as bar:
        for row, article_id in _ids(articles, bar) if ids else ():
            if article_id in ids:
                found.setdefault(article_id, row)
                if len(found) == len(ids):
                    break
    return found


def reader_of_impression(log: ClickLog, row: int) -> Reader:
    """The user of an impression, what it showed and, in a labelled log, what was clicked.

    Raises:
        UsageError: There is no such row.
    """
    if not 0 <= row < log.clicks.num_impressions:
        raise UsageError(
            f"{log.impressions.location} has no impression {row}; its rows are 0 to "
            f"{log.clicks.num_impressions - 1:,}"
        )
    one = np.array([row])
    history, _ = log.clicks.reader.gather_ragged("history", one)
    shown, _ = log.clicks.candidates(one)
    sample = log.impressions.sample(row)
    when = f", {sample['time']}" if sample.get("time") else ""
    return Reader(
        about=f"user {sample.get('user', '?')} in impression {sample.get('id', '?')} (row {row})"
        f" of {log.impressions.location}{when}",
        history=history.astype(np.int64),
        shown=shown,
        clicked=shown[log.clicks.clicked(one).astype(bool)] if log.clicks.labelled else _none(),
    )


def last_impression_of(log: ClickLog, user: str) -> int:
    """The row of a user's latest impression; of those of one time, the last in the log.

    Raises:
        UsageError: The log has no such user; the message names those that are most like it.
        DamageError: An impression before the user's first one is damaged.
    """
    rows = np.arange(log.clicks.num_impressions, dtype=np.int64)
    # The column numbers users, and one impression of a user tells the number.
    with Progress(len(rows), "find the user", "impressions") as bar:
        for row, sample in enumerate(log.impressions):
            bar.update()
            if str(sample.get("user", "")) == user:
                numbers, times = log.clicks.user(rows), log.clicks.time(rows)
                mine = np.flatnonzero(numbers == numbers[row])
                return int(mine[times[mine] == times[mine].max()][-1])
    hint = _alike(user, {str(sample.get("user", "")) for sample in log.impressions})
    raise UsageError(f"{log.impressions.location} has no user {user!r}{hint}")


def _ids(articles: ShardSet, bar: Progress) -> Iterator[tuple[int, str]]:
    """(row, id) of every article that can be read; `tnr shards verify` names the others."""
    for row in range(articles.num_rows):
        bar.update()
        try:
            article_id = str(articles.sample(row).get("id", ""))
        except DamageError:
            continue
        yield row, article_id


def _alike(name: str, names: Iterable[str]) -> str:
    """A hint at the names that are most like one, or nothing; ``names`` is gone through once."""
    found = difflib.get_close_matches(name, names)
    return f"; did you mean {' or '.join(found)}?" if found else ""
