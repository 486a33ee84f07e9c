"""Convert one chunk of an input to a spool of articles or of bodies."""

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import DamageError
from shards.fields import FIELD_NAMES, ArticleFields, FieldReader, RowError
from shards.files import atomic_file
from shards.mind import parse_news
from shards.normalise import normalise, normalise_fields
from shards.spool import Spool, SpoolWriter, hash_text, read_at
from shards.spooled_build import SpoolJob, Taker
from shards.writer import encode_sample

REQUIRED = ("id", "title")
UNTYPED = ("csv", "tsv")
"""Formats in which every value is text, so that whole numbers may be written ``17.0``."""
# Origin of a body: the number in a row's record, and the name of the count.
ORIGINS = ("", "body_from_second_file", "body_from_abstract", "body_empty")
_OWN, _SECOND_FILE, _ABSTRACT, _EMPTY = range(4)
_FIELD_BIT = {name: 1 << place for place, name in enumerate(FIELD_NAMES)}


@dataclass(frozen=True)
class BodyJob(SpoolJob):
    """Spools bodies; the payload is the text."""

    fields: ArticleFields
    normalised: bool

    def taker(self, spool: SpoolWriter) -> Taker:
        """Return the object that moves a chunk's rows into ``spool``."""
        return _BodyTaker(self, spool)


class _BodyTaker(Taker):
    def __init__(self, job: BodyJob, spool: SpoolWriter) -> None:
        self._normalised, self._spool = job.normalised, spool
        untyped = job.form in UNTYPED
        self._reader = FieldReader(job.fields, ("id", "body"), untyped=untyped)

    def take(self, line: int, record: Any) -> None:
        found = self._reader.read(record)
        if "id" not in found:
            raise RowError("missing id")
        body = found.get("body", "")
        if self._normalised:
            body, _ = normalise(body, many_lines=True)
        data, id_hash = body.encode("utf-8"), hash_text(found["id"])
        if data:
            self._spool.add(data, line, id=id_hash)

    def finish(self, facts: dict[str, Any]) -> bytes:
        facts.update(self._reader.seen())
        return b""


class Quoting:
    r"""Counts quoted fields in TSV, which is read without quoting.

    pandas' ``to_csv(sep="\t")`` encloses a field with a quote in quotes and doubles the quotes
    inside. In a file from pandas, every field with a quote therefore looks like that.

    Attributes:
        counts: Enclosed fields with doubled quotes, other fields with a quote, and rows that have
            an enclosed field.
    """

    def __init__(self) -> None:
        """Start with zero counts."""
        self.counts = [0, 0, 0]

    def look(self, columns: Iterable[str]) -> None:
        """Count the fields of one row."""
        quoted = others = 0
        for text in columns:
            if '"' in text:
                inner = text[1:-1]
                whole = len(text) > 1 and text[0] == text[-1] == '"'
                if whole and inner.replace('""', "").find('"') < 0:
                    quoted += 1
                else:
                    others += 1
        if quoted or others:
            self.counts[0] += quoted
            self.counts[1] += others
            self.counts[2] += quoted > 0


@dataclass(frozen=True)
class ArticleJob(SpoolJob):
    """Spools articles; the payload is the sample in its final form."""

    fields: ArticleFields
    normalised: bool
    bodies: Path | None
    """The index of the bodies from a second file."""
    near_duplicates: bool

    def taker(self, spool: SpoolWriter) -> Taker:
        """Return the object that moves a chunk's rows into ``spool``."""
        return _ArticleTaker(self, spool)


class _ArticleTaker(Taker):
    def __init__(self, job: ArticleJob, spool: SpoolWriter) -> None:
        self._job, self._spool = job, spool
        self._reader = FieldReader(job.fields, untyped=job.form in UNTYPED)
        self._parse = parse_news if job.form == "mind" else self._reader.read
        self._bodies = BodyIndex(job.bodies) if job.bodies is not None else None
        self._texts: list[str] = []
        self._quoting = Quoting() if job.form in ("mind", "tsv") else None

    def take(self, line: int, record: Any) -> None:
        if self._quoting is not None:
            self._quoting.look(record if self._job.form == "mind" else record.values())
        found, changed = self._parse(record), 0
        if self._job.normalised:
            found, changed = normalise_fields(found)
        for name in REQUIRED:
            if name not in found:
                raise RowError(f"missing {name}")
        second = None if self._bodies is None else self._bodies.find(found["id"])
        body, origin = _body(found, second)
        article = {"id": found["id"], "title": found["title"], "body": body}
        article |= {name: text for name, text in found.items() if name not in article}
        text = f"{found['title']}\0{body}"
        self._spool.add(
            encode_sample(article),
            line,
            id=hash_text(found["id"]),
            text=hash_text(text),
            article=_hash_fields(found),
            fields=sum(_FIELD_BIT[name] for name in article),
            origin=origin,
            changed=changed,
        )
        if self._job.near_duplicates:
            self._texts.append(text)

    def finish(self, facts: dict[str, Any]) -> bytes:
        if self._job.form != "mind":
            facts.update(self._reader.seen())
        if self._quoting is not None:
            facts["quoting"] = self._quoting.counts
        if not self._job.near_duplicates:
            return b""
        from shards.near_duplicates import signatures

        return signatures(self._texts).tobytes()


def fields_of(mask: int) -> tuple[str, ...]:
    """Return the names of the fields whose bits are set."""
    return tuple(name for name, bit in _FIELD_BIT.items() if mask & bit)


def _body(found: Mapping[str, str], second: str | None) -> tuple[str, int]:
    """Return an article's body and the number of its origin."""
    if second is not None:
        return second, _SECOND_FILE
    if "body" in found:
        return found["body"], _OWN
    if "abstract" in found:
        return found["abstract"], _ABSTRACT
    return "", _EMPTY


def _hash_fields(found: Mapping[str, str]) -> bytes:
    return hash_text("\0".join(f"{name}\0{found[name]}" for name in sorted(found)), 8)


# Place of a body: index of its spool in the list of spools, first byte, number of bytes.
_PLACE_DTYPE = np.dtype([("low", "<u8"), ("offset", "<u8"), ("spool", "<u4"), ("length", "<u4")])


def write_body_index(path: Path, spools: list[Spool], first: np.ndarray) -> int:
    """Write the index that finds the body of an article.

    The file holds the first halves of the hashes of the ids, sorted, and then one record per hash
    with the place of the body. The index is memory-mapped, so bodies take no memory.

    Args:
        path: Output path; the names of the spools are written beside it.
        spools: The spools of the file with bodies.
        first: bool ``[n]``: whether a row of the spools is the first one with its id.

    Returns:
        The number of bodies.
    """
    places, highs, done = [], [], 0
    for number, spool in enumerate(spools):
        rows = spool.rows()
        kept = first[done : done + len(rows)]
        done += len(rows)
        place = np.zeros(len(rows), _PLACE_DTYPE)
        place["low"], place["length"], place["spool"] = rows["id"][:, 1], rows["length"], number
        place["offset"][1:] = np.cumsum(rows["length"][:-1], dtype=np.uint64)
        places.append(place[kept])
        highs.append(rows["id"][:, 0][kept])
    high = np.concatenate(highs) if highs else np.zeros(0, np.uint64)
    order = np.argsort(high, kind="stable")
    with atomic_file(path) as file:
        file.write(high[order].tobytes())
        if places:
            file.write(np.concatenate(places)[order].tobytes())
    return len(high)


class BodyIndex:
    """Finds spooled bodies; only the parts that are read are in memory."""

    def __init__(self, path: Path) -> None:
        """Map the index."""
        size = path.stat().st_size
        self._count = size // (8 + _PLACE_DTYPE.itemsize)
        self._stem = path.with_suffix("")
        if self._count == 0:
            return
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._high = np.frombuffer(mapped, "<u8", self._count)
        self._places = np.frombuffer(mapped, _PLACE_DTYPE, self._count, 8 * self._count)

    def find(self, article_id: str) -> str | None:
        """Return the body of an article, or None.

        Raises:
            DamageError: A spool was damaged in the meantime.
        """
        if self._count == 0:
            return None
        high, low = np.frombuffer(hash_text(article_id), "<u8")
        at = int(np.searchsorted(self._high, high))
        while at < self._count and self._high[at] == high:
            place = self._places[at]
            if place["low"] == low:
                spool = Path(f"{self._stem}-{int(place['spool']):06d}.spool")
                return _decoded(spool, int(place["offset"]), int(place["length"]))
            at += 1
        return None


def _decoded(spool: Path, offset: int, length: int) -> str:
    try:
        return read_at(spool, offset, length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamageError(f"{spool}, which this build has written, is damaged") from error
