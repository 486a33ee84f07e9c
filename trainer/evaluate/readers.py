"""User of a recommendation: a history of ids, an impression of a log, or a user of a log."""

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
    """A user: the history, and the data of an impression of a log.

    Attributes:
        about: Origin of the user, for people.
        history: int64[h], article rows, oldest first.
        shown: int64[c], the candidates of the impression, if there is one.
        clicked: int64[k], candidates that the log records as clicked.
    """

    about: str
    history: np.ndarray
    shown: np.ndarray = field(default_factory=_none)
    clicked: np.ndarray = field(default_factory=_none)


def reader_of_ids(articles: ShardSet, ids: Sequence[str]) -> Reader:
    """Make a history of articles by their own ids, oldest first.

    Raises:
        UsageError: An id does not exist; the message names similar ids.
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
    """Find the rows of articles by their own ids; unknown ids are left out.

    One pass over the set, up to the last requested id; nothing else is kept.
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
    """Return the user of an impression, its candidates and, if labelled, its clicks.

    Raises:
        UsageError: The row does not exist.
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
    """Return the row of a user's latest impression, the last of equal times.

    Raises:
        UsageError: The log does not have the user; the message names similar users.
        DamageError: An impression before the user's first one is damaged.
    """
    rows = np.arange(log.clicks.num_impressions, dtype=np.int64)
    # The column numbers users, so one impression of a user gives the number.
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
    """Yield (row, id) of every readable article; `tnr shards verify` names the others."""
    for row in range(articles.num_rows):
        bar.update()
        try:
            article_id = str(articles.sample(row).get("id", ""))
        except DamageError:
            continue
        yield row, article_id


def _alike(name: str, names: Iterable[str]) -> str:
    """Return a hint at the names most similar to one, or nothing.

    ``names`` is iterated once.
    """
    found = difflib.get_close_matches(name, names)
    return f"; did you mean {' or '.join(found)}?" if found else ""
