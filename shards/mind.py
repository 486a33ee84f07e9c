"""Parse MIND's files: ``news.tsv`` and ``behaviors.tsv``, in a folder, in a zip, or alone.

Both are split at tabs, without quoting (titles contain quotes), and have no header:

- ``news.tsv``: id, category, subcategory, title, abstract, url, title entities, abstract entities;
- ``behaviors.tsv``: impression id, user id, time, history (news ids, oldest first, may be empty),
  impressions (``N1-0 N2-1``; in a test log bare ids).

MIND has no bodies; they may come from a second file. (Wu et al., MIND, ACL 2020.)
"""

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from shards.errors import DataError
from shards.fields import RowError, check_key, whole_number
from shards.heads import OFFICE, OFFICE_MEMBER
from shards.sources import InputFile, check_is_file, open_zip
from shards.tables import printable

NEWS_NAME = "news.tsv"
BEHAVIORS_NAME = "behaviors.tsv"
_NEWS_COLUMNS = 8
_BEHAVIOR_COLUMNS = 5
_MEMBERS_NAMED = 8
_LABELS = frozenset(("-0", "-1"))
_SEPARATORS = re.compile(r"[\s,;|'\"\[\](){}]+")
DAY_FIRST = "day before month"
_HEADERS = ("id", "impression_id", "impressionid", "impression")
_TIME = re.compile(
    r"(\d\d?)/(\d\d?)/(\d{4})\s+(1[0-2]|0?[1-9]):(\d\d?):(\d\d?)\s+([AP])M",
    re.ASCII | re.IGNORECASE,
)


def find_member(path: Path, name: str) -> InputFile | None:
    """Find ``news.tsv`` or ``behaviors.tsv`` at ``path``.

    Args:
        path: A folder or a zip that contains the file, or the file itself (may be ``.gz``).
        name: The file's name.

    Returns:
        The file, or None if ``path`` is a file of another kind.

    Raises:
        DataError: ``path`` does not exist, or is a folder or a zip without the file.
    """
    if path.is_dir():
        for candidate in (path / name, path / f"{name}.gz"):
            if candidate.is_file():
                return InputFile(candidate)
        raise DataError(
            f"the folder {path} has no {name}; expected a folder of MIND; for other data give the"
            " files themselves"
        )
    check_is_file(path)
    if path.name.lower().removesuffix(".gz") == name:
        return InputFile(path)
    if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
        return None
    with open_zip(path) as archive:
        members = [
            member
            for member in archive.namelist()
            if PurePosixPath(member).name == name and not member.startswith("__MACOSX/")
        ]
        found = archive.namelist()
    if OFFICE_MEMBER in found:
        raise DataError(f"{path} is packed with {OFFICE[0]}; {OFFICE[1]}")
    if len(members) != 1:
        named = ", ".join(map(printable, found[:_MEMBERS_NAMED]))
        named += ", …" if len(found) > _MEMBERS_NAMED else ""
        raise DataError(
            f"the archive {path} has {len(members)} members named {name}, expected one; its members"
            f" are: {named or 'none'}; only MIND's zips are read: unpack this one, and give the"
            " files"
        )
    return InputFile(path, members[0])


def parse_news(columns: Sequence[str]) -> dict[str, str]:
    """Parse one line of ``news.tsv`` to an article; omit empty fields.

    Raises:
        RowError: The line does not have eight columns, is a header, or the id cannot serve as a
            key.
    """
    if len(columns) != _NEWS_COLUMNS:
        raise RowError("wrong number of columns")
    if [columns[place].strip().lower() for place in (1, 3)] == ["category", "title"]:
        raise RowError("header line")
    names = ("id", "category", "subcategory", "title", "abstract", "url")
    article = {name: text.strip() for name, text in zip(names, columns, strict=False)}
    article["id"] = check_key(whole_number(article["id"]), "id")
    article["title"] = " ".join(article["title"].split())
    return {name: text for name, text in article.items() if text}


@dataclass(slots=True)
class Impression:
    """One line of ``behaviors.tsv`` with news ids replaced by rows of the article set."""

    id: str
    user: str
    time: str
    history: list[int]
    candidates: list[int]
    clicks: list[int] | None
    """1 for each clicked candidate, 0 for the others; None in a log without labels."""
    unknown_history: int
    """Number of articles of the history that the article set lacks; they are left out."""

    def to_sample(self) -> dict[str, object]:
        """Return the impression in the form of a shard's sample."""
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
    """Tell whether a line of ``behaviors.tsv`` has labels.

    Ids may themselves end in ``-1``, so candidates are looked up with and without an ending.

    Args:
        columns: The line, split at tabs.
        rows: Row number of each article id.

    Returns:
        None if the line names no known article in either way.
    """
    items = columns[4].split() if len(columns) == _BEHAVIOR_COLUMNS else []
    bare = sum(find_row(rows, item) is not None for item in items)
    labelled = [item[:-2] for item in items if item.endswith(("-0", "-1"))]
    with_label = sum(find_row(rows, item) is not None for item in labelled)
    return with_label >= bare if bare or with_label else None


def find_row(rows: Mapping[str, int], item: str) -> int | None:
    """Return the row of an article in a log, even if pandas wrote ``17.0``."""
    row = rows.get(item)
    if row is None and item.endswith(".0") and item[:-2].isdigit():
        return rows.get(item[:-2])
    return row


def known_rows(rows: Mapping[str, int], items: Sequence[str]) -> list[int]:
    """Return the rows of the known articles."""
    found = [row for row in map(rows.get, items) if row is not None]
    if len(found) == len(items):
        return found
    return [row for item in items if (row := find_row(rows, item)) is not None]


def parse_behavior(
    columns: Sequence[str], rows: Mapping[str, int], labelled: bool, newest_first: bool = False
) -> Impression:
    """Parse one line of ``behaviors.tsv``.

    Articles of the history that ``rows`` lacks are left out and counted, since a history may name
    articles of an older collection; candidates must be known.

    Args:
        columns: The line, split at tabs.
        rows: Row number of each article id.
        labelled: Whether candidates carry ``-0`` or ``-1``.
        newest_first: Whether the history is newest first; it is then reversed.

    Raises:
        RowError: The line must be refused.
    """
    if len(columns) != _BEHAVIOR_COLUMNS:
        raise RowError("wrong number of columns")
    impression_id, user, time = (text.strip() for text in columns[:3])
    if not impression_id:
        raise RowError("missing id")
    if not user:
        raise RowError("missing user")
    impression_id = check_key(whole_number(impression_id), "id")
    user = check_key(whole_number(user), "user")
    moment = iso_time(time)
    if moment == time and is_day_first(time):
        raise RowError(DAY_FIRST)
    history, items = columns[3].split(), columns[4].split()
    if newest_first:
        history.reverse()
    if not items:
        raise RowError("no candidates")
    clicks: list[int] | None = None
    if labelled:
        labels = [item[-2:] for item in items]
        if not _LABELS.issuperset(labels) or "-0" in items or "-1" in items:
            raise RowError(_why_no_labels(columns, rows))
        clicks = [1 if label == "-1" else 0 for label in labels]
        items = [item[:-2] for item in items]
    candidates = known_rows(rows, items)
    if len(candidates) < len(items):
        raise RowError(_why_unknown(columns, rows, labelled))
    if clicks is not None and 1 not in clicks:
        raise RowError("no click")
    known = known_rows(rows, history)
    if len(known) < len(history) and _hold_others(history, rows):
        raise RowError("quoted columns" if _is_quoted(columns[3]) else "bad history")
    return Impression(
        id=impression_id,
        user=user,
        time=moment,
        history=known,
        candidates=candidates,
        clicks=clicks,
        unknown_history=len(history) - len(known),
    )


def _hold_others(items: Sequence[str], rows: Mapping[str, int]) -> bool:
    """Tell whether some items of a list are articles in commas, quotes or brackets.

    Such a history would look shorter than it is, and such candidates would look unknown.
    """
    for item in items:
        if _SEPARATORS.search(item) and find_row(rows, item) is None:
            for part in _SEPARATORS.split(item):
                bare = part[:-2] if part.endswith(("-0", "-1")) else part
                if find_row(rows, part) is not None or find_row(rows, bare) is not None:
                    return True
    return False


def _is_quoted(text: str) -> bool:
    return text[:1] == text[-1:] == '"'


def _why_no_labels(columns: Sequence[str], rows: Mapping[str, int]) -> str:
    """Return the reason why not all candidates of a line have a label."""
    if _is_quoted(columns[4]):
        return "quoted columns"
    if columns[0].strip().lower().replace(" ", "_") in _HEADERS:
        return "header line"
    if _hold_others(columns[4].split(), rows):
        return "bad candidates"
    return "missing labels" if has_labels(columns, rows) is False else "bad click label"


def _why_unknown(columns: Sequence[str], rows: Mapping[str, int], labelled: bool) -> str:
    """Return the reason why not all candidates of a line are known."""
    if _is_quoted(columns[4]):
        return "quoted columns"
    if _hold_others(columns[4].split(), rows):
        return "bad candidates"
    if labelled:
        return "unknown article"
    if columns[0].strip().lower().replace(" ", "_") in _HEADERS:
        return "header line"
    return "unexpected labels" if has_labels(columns, rows) else "unknown article"


def iso_time(text: str) -> str:
    """Convert MIND's ``11/15/2019 8:55:22 AM`` to ``2019-11-15T08:55:22``; keep any other text."""
    match = _TIME.fullmatch(text)
    if match is None:
        return text
    month, day, year, hour, minute, second, half = match.groups()
    try:
        moment = datetime(int(year), int(month), int(day), int(hour) % 12, int(minute), int(second))
    except ValueError:
        return text
    return moment.replace(hour=moment.hour + 12 * (half in "Pp")).isoformat()


def is_day_first(text: str) -> bool:
    """Tell whether a time is valid only with the day first: ``15/11/2019 8:55:22 AM``.

    A log with one such time has others, with days up to the twelfth, that would be read as other
    days.
    """
    match = _TIME.fullmatch(text)
    if match is None or iso_time(text) != text:
        return False
    day, month = match.span(1), match.span(2)
    turned = text[slice(*month)] + "/" + text[slice(*day)] + text[month[1] :]
    return iso_time(turned) != turned
