"""From one chunk of an input to its spool: articles, or bodies of a second file."""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.chunks import Chunk
from shards.errors import DamageError
from shards.fields import FIELD_NAMES, ArticleFields, FieldReader, RowError
from shards.files import atomic_file
from shards.mind import parse_news
from shards.normalise import normalise, normalise_fields
from shards.sources import InputFile
from shards.spool import Spool, SpoolWriter, hash_text, read_at
from shards.writer import encode_sample

REQUIRED = ("id", "title")
# Where a body is from, by the number in a row's record; the name of the count.
ORIGINS = ("", "body_from_second_file", "body_from_abstract", "body_empty")
_OWN, _SECOND_FILE, _ABSTRACT, _EMPTY = range(4)
_FIELD_BIT = {name: 1 << place for place, name in enumerate(FIELD_NAMES)}


@dataclass(frozen=True)
class SpoolJob(ABC):
    """Makes the spools of one input; picklable, so that other processes can."""

    file: InputFile
    form: str
    fields: ArticleFields
    folder: Path
    """Where the spools go."""
    stem: str
    """What their names begin with."""
    normalised: bool

    def path(self, chunk: Chunk) -> Path:
        """Return where the spool of a chunk is, or will be."""
        return self.folder / f"{self.stem}-{chunk.number:06d}.spool"

    def run(self, chunk: Chunk) -> Path:
        """Make the spool of a chunk, unless it is there; return where it is.

        Raises:
            DamageError: If the input cannot be read.
            OSError: If the spool cannot be written.
        """
        path = self.path(chunk)
        if path.exists():
            return path
        file = InputFile(self.file.path, self.file.member)
        num_rows = refused_first = 0
        facts: dict[str, Any] = {}
        with SpoolWriter(path) as spool:
            take, finish = self._taker(spool, facts)
            for row in chunk.rows(file):
                num_rows += 1
                reason = row.reason
                if reason is None:
                    try:
                        take(row.line, row.record)
                    except RowError as error:
                        reason = error.reason
                    except UnicodeEncodeError:
                        reason = "unpaired surrogate"
                if reason is not None:
                    spool.refuse(row.line, reason, row.excerpt())
                    refused_first += refused_first == num_rows - 1
            facts |= {"rows": num_rows, "lines": file.num_lines, "refused_first": refused_first}
            signatures = finish()
            spool.finish(facts, signatures)
        return path

    @abstractmethod
    def _taker(
        self, spool: SpoolWriter, facts: dict[str, Any]
    ) -> tuple[Callable[[int, Any], None], Callable[[], bytes]]:
        """Return what takes a row's line and record, and what gives the signatures at the end."""


@dataclass(frozen=True)
class BodyJob(SpoolJob):
    """Spools bodies: the payload is the text."""

    def _taker(
        self, spool: SpoolWriter, facts: dict[str, Any]
    ) -> tuple[Callable[[int, Any], None], Callable[[], bytes]]:
        reader = FieldReader(self.fields, ("id", "body"))

        def take(line: int, record: Any) -> None:
            found = reader.read(record)
            if "id" not in found:
                raise RowError("missing id")
            body = found.get("body", "")
            if self.normalised:
                body, _ = normalise(body, many_lines=True)
            data, id_hash = body.encode("utf-8"), hash_text(found["id"])
            if data:
                spool.add(data, line, id=id_hash)

        def finish() -> bytes:
            facts.update(reader.seen())
            return b""

        return take, finish


@dataclass(frozen=True)
class ArticleJob(SpoolJob):
    """Spools articles: the payload is the sample as it will lie in the shard."""

    bodies: Path | None
    """The index of the bodies from a second file."""
    near_duplicates: bool

    def _taker(
        self, spool: SpoolWriter, facts: dict[str, Any]
    ) -> tuple[Callable[[int, Any], None], Callable[[], bytes]]:
        reader = FieldReader(self.fields)
        parse = parse_news if self.form == "mind" else reader.read
        bodies = BodyIndex(self.bodies) if self.bodies is not None else None
        texts: list[str] = []

        def take(line: int, record: Any) -> None:
            found, changed = parse(record), 0
            if self.normalised:
                found, changed = normalise_fields(found)
            for name in REQUIRED:
                if name not in found:
                    raise RowError(f"missing {name}")
            second = None if bodies is None else bodies.find(found["id"])
            body, origin = _body(found, second)
            article = {"id": found["id"], "title": found["title"], "body": body}
            article |= {name: text for name, text in found.items() if name not in article}
            text = f"{found['title']}\0{body}"
            spool.add(
                encode_sample(article),
                line,
                id=hash_text(found["id"]),
                text=hash_text(text),
                article=_hash_fields(found),
                fields=sum(_FIELD_BIT[name] for name in article),
                origin=origin,
                changed=changed,
            )
            if self.near_duplicates:
                texts.append(text)

        def finish() -> bytes:
            if self.form != "mind":
                facts.update(reader.seen())
            if not self.near_duplicates:
                return b""
            from shards.near_duplicates import signatures

            return signatures(texts).tobytes()

        return take, finish


def fields_of(mask: int) -> tuple[str, ...]:
    """Return the names of the fields whose bits are set."""
    return tuple(name for name, bit in _FIELD_BIT.items() if mask & bit)


def _body(found: Mapping[str, str], second: str | None) -> tuple[str, int]:
    """Return an article's body and where it is from."""
    if second is not None:
        return second, _SECOND_FILE
    if "body" in found:
        return found["body"], _OWN
    if "abstract" in found:
        return found["abstract"], _ABSTRACT
    return "", _EMPTY


def _hash_fields(found: Mapping[str, str]) -> bytes:
    return hash_text("\0".join(f"{name}\0{found[name]}" for name in sorted(found)), 8)


# Where a body is: place of its spool in the list of spools, first byte, bytes.
_PLACE_DTYPE = np.dtype([("low", "<u8"), ("offset", "<u8"), ("spool", "<u4"), ("length", "<u4")])


def write_body_index(path: Path, spools: list[Spool], first: np.ndarray) -> int:
    """Write the index by which articles find their bodies.

    The file holds the first halves of the hashes of the ids, sorted, and then for each of them a
    record of where the body is; it is mapped, so the bodies cost no memory.

    Args:
        path: Where to; the names of the spools go beside it.
        spools: The spools of the file with bodies.
        first: bool ``[n]``: whether a row of the spools is the first of its id.

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
    """Finds the bodies that were spooled; nothing but what is looked at is in memory."""

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
            DamageError: If a spool was damaged meanwhile.
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
