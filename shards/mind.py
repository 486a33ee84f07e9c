"""MIND's files: ``news.tsv`` and ``behaviors.tsv``, in a folder, in a zip, or by themselves.

Both are split at tabs, without quoting (titles contain quotes), and have no header:

- ``news.tsv``: id, category, subcategory, title, abstract, url, title entities, abstract entities;
- ``behaviors.tsv``: impression id, user id, time, history (news ids, oldest first, may be empty),
  impressions (``N1-0 N2-1``; in a test log bare ids).

MIND has no bodies; they may come from a second file. (Wu et al., MIND, ACL 2020.)
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from shards.errors import DataError
from shards.fields import RowError
from shards.sources import InputFile, open_zip

NEWS_NAME = "news.tsv"
BEHAVIORS_NAME = "behaviors.tsv"
_NEWS_COLUMNS = 8
_BEHAVIOR_COLUMNS = 5
_TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"


def find_member(path: Path, name: str) -> InputFile | None:
    """Find ``news.tsv`` or ``behaviors.tsv`` at ``path``.

    Args:
        path: A folder or a zip that contains the file, or the file itself (perhaps ``.gz``).
        name: Its name.

    Returns:
        The file, or None if ``path`` is a file of another kind.

    Raises:
        DataError: If ``path`` does not exist, or is a folder or a zip without the file.
    """
    if path.is_dir():
        for candidate in (path / name, path / f"{name}.gz"):
            if candidate.is_file():
                return InputFile(candidate)
        raise DataError(f"the folder {path} has no {name}")
    if not path.is_file():
        raise DataError(f"input {path} does not exist")
    if path.name.removesuffix(".gz") == name:
        return InputFile(path)
    if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
        return None
    with open_zip(path) as archive:
        members = [
            member
            for member in archive.namelist()
            if PurePosixPath(member).name == name and not member.startswith("__MACOSX/")
        ]
    if len(members) != 1:
        raise DataError(f"the archive {path} has {len(members)} members named {name}, expected one")
    return InputFile(path, members[0])


def parse_news(columns: Sequence[str]) -> dict[str, str]:
    """Return the article in one line of ``news.tsv``; fields that are empty are left out.

    Raises:
        RowError: If the number of columns is not eight.
    """
    if len(columns) != _NEWS_COLUMNS:
        raise RowError("wrong number of columns")
    names = ("id", "category", "subcategory", "title", "abstract", "url")
    article = {name: text.strip() for name, text in zip(names, columns, strict=False)}
    article["title"] = " ".join(article["title"].split())
    return {name: text for name, text in article.items() if text}


@dataclass(frozen=True, slots=True)
class Impression:
    """One line of ``behaviors.tsv`` with news ids replaced by rows of the article set."""

    id: str
    user: str
    time: str
    history: list[int]
    candidates: list[int]
    clicks: list[int] | None
    """1 for each candidate that was clicked, 0 for the others; None in a log without labels."""
    unknown_history: int
    """How many articles of the history the article set does not have; they are left out."""

    def to_sample(self) -> dict[str, object]:
        """Return the impression as it is stored in a shard."""
        sample: dict[str, object] = {
            "id": self.id,
            "user": self.user,
            "time": self.time,
            "history": self.history,
            "candidates": self.candidates,
        }
        if self.clicks is not None:
            sample["clicks"] = self.clicks
        return sample


def has_labels(columns: Sequence[str], rows: Mapping[str, int]) -> bool | None:
    """Say whether a line of ``behaviors.tsv`` tells what was clicked.

    Ids may themselves end in ``-1``, so the candidates are looked up with and without an ending.

    Args:
        columns: The line, split at tabs.
        rows: Row number of each article id.

    Returns:
        None if the line knows no article either way.
    """
    items = columns[4].split() if len(columns) == _BEHAVIOR_COLUMNS else []
    bare = sum(item in rows for item in items)
    with_label = sum(item[:-2] in rows for item in items if item.endswith(("-0", "-1")))
    return with_label >= bare if bare or with_label else None


def parse_behavior(
    columns: Sequence[str], rows: Mapping[str, int], labelled: bool, newest_first: bool = False
) -> Impression:
    """Parse one line of ``behaviors.tsv``.

    Articles of the history that ``rows`` does not have are left out and counted, since logs may
    name articles of an older collection there; a candidate must be known.

    Args:
        columns: The line, split at tabs.
        rows: Row number of each article id.
        labelled: Whether candidates carry ``-0`` or ``-1``.
        newest_first: Whether the line has its history so; it is turned round.

    Raises:
        RowError: If the line must be refused.
    """
    if len(columns) != _BEHAVIOR_COLUMNS:
        raise RowError("wrong number of columns")
    impression_id, user = columns[0].strip(), columns[1].strip()
    if not impression_id:
        raise RowError("missing id")
    if not user:
        raise RowError("missing user")
    history = columns[3].split()
    if newest_first:
        history.reverse()
    known = [rows[item] for item in history if item in rows]
    items = columns[4].split()
    if not items:
        raise RowError("no candidates")
    clicks: list[int] | None = None
    if labelled:
        pairs = [item.rpartition("-") for item in items]
        if any(label not in ("0", "1") or not item for item, _, label in pairs):
            raise RowError("bad click label")
        clicks = [int(label) for _, _, label in pairs]
        items = [item for item, _, _ in pairs]
    try:
        candidates = [rows[item] for item in items]
    except KeyError as error:
        raise RowError("unknown article") from error
    if clicks is not None and 1 not in clicks:
        raise RowError("no click")
    return Impression(
        id=impression_id,
        user=user,
        time=iso_time(columns[2].strip()),
        history=known,
        candidates=candidates,
        clicks=clicks,
        unknown_history=len(history) - len(known),
    )


def iso_time(text: str) -> str:
    """Return MIND's ``11/15/2019 8:55:22 AM`` as ``2019-11-15T08:55:22``; other text as it is."""
    try:
        return datetime.strptime(text, _TIME_FORMAT).isoformat()
    except ValueError:
        return text
