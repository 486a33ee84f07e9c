"""Read tars made elsewhere once, from end to end, to make their indexes.

An unusable sample is left out of the index, counted by its reason and listed with its tar and
offset. A damaged tar ends the work, because its original content is unknown.
"""

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import DataError
from shards.fields import RowError, check_key
from shards.index import MemberIndexBuilder
from shards.layout import JSON, ArticleDecoder, Layout, split_name
from shards.layout_guess import MEMBERS, fields_under_other_names, looks_like
from shards.manifest import ShardInfo
from shards.sources import MAX_ROW_BYTES
from shards.tables import printable
from shards.tar import TarMember, TarWalk

_HOPELESS_SAMPLES = 1000
_EXCERPT_CHARS = 160
DOT_IN_KEY, NO_MEMBER, LEFT_OUT = "dot in key", "no member of the layout", "field left out"
_OF_THE_GUESS = (DOT_IN_KEY, NO_MEMBER, LEFT_OUT)


@dataclass(frozen=True)
class Refusal:
    """A sample, or a member of a sample, that was left out."""

    source: str
    """Name of the tar."""
    line: int
    """Number of the sample in its tar, from 1, in the order of first keys; 0 if it has none."""
    offset: int
    """First byte of the member's data."""
    reason: str
    excerpt: str
    """The member's name."""


@dataclass
class Tally:
    """Counts and refusals over all tars."""

    guessed: str = ""
    """The layout in words, if it was guessed."""
    counts: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)

    @property
    def reasons(self) -> dict[str, int]:
        """The number of refused samples by reason, sorted."""
        return dict(sorted(Counter(refusal.reason for refusal in self.refusals).items()))

    def check(self, max_refused: float) -> None:
        """Check the share of refused samples.

        Raises:
            DataError: Too many samples were refused, or none is left.
        """
        samples, refused = self.counts["rows"], self.counts["refused"]
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        where = ""
        if self.refusals:
            first = self.refusals[0]
            where = (
                f"; the first: {first.source}, offset {first.offset} ({printable(first.excerpt)})"
            )
        if refused > max_refused * samples:
            raise DataError(
                f"{refused:,} of {samples:,} samples were refused"
                f" ({100 * refused / samples:.1f}%, more than --max-refused {max_refused:g}"
                f" allows): {reasons}{where}{self._hint()}"
            )
        if samples == refused:
            found = reasons or "the tars are empty"
            raise DataError(f"there are no samples to index: {found}{self._hint()}")

    def _hint(self) -> str:
        """Mention the guessed layout as a possible cause."""
        if not self.guessed or not set(self.reasons).intersection(_OF_THE_GUESS):
            return ""
        return (
            f"; {self.guessed} was guessed from the first samples and does not fit the whole set:"
            " give --member and --title-field, --body-field …, or make the tars alike (a dot in a"
            " file name ends the key of its sample)"
        )


@dataclass(frozen=True)
class ScannedShard:
    """The result of reading one tar."""

    info: ShardInfo
    index: bytes


class Scanner:
    """Reads tars one after the other and makes their indexes.

    Args:
        layout: What to read from each sample.
        guessed: The guessed parts of the layout (:func:`shards.layout_guess.guessed_parts`):
            samples with members that the guess ignores are refused.

    Attributes:
        tally: The counts so far.
    """

    def __init__(self, layout: Layout, guessed: Collection[str] = ()) -> None:
        """Start without samples; keep the ids of all samples in memory."""
        self.layout = layout
        self.guessed = frozenset(guessed)
        words = " ".join(f"{item.field}=*.{printable(item.suffix)}" for item in layout.members)
        self.tally = Tally(words if MEMBERS in self.guessed else "")
        self.decoder = ArticleDecoder(layout, strict=True)
        self.json = next((n for n, m in enumerate(layout.members) if m.field == JSON), None)
        self._members = {member.suffix: n for n, member in enumerate(layout.members)}
        self._ids: set[str] = set()

    def scan(self, path: Path) -> ScannedShard:
        """Read one tar.

        Raises:
            DamageError: The tar is damaged; the message names the offset.
            DataError: All samples at the beginning of the set are refused.
        """
        digest = hashlib.sha256()
        shard = _ShardScan(self, path.name)
        with TarWalk(path, digest) as walk:
            for member in walk:
                shard.take(walk, member)
            size = walk.at
        index = shard.finish()
        sha256 = hashlib.sha256(index).hexdigest()
        info = ShardInfo(path.name, shard.accepted, size, digest.hexdigest(), len(index), sha256)
        return ScannedShard(info, index)

    def new_id(self, sample_id: str) -> bool:
        """Tell whether no earlier sample has this id, and remember it."""
        known = len(self._ids)
        self._ids.add(sample_id)
        return len(self._ids) > known


@dataclass(slots=True)
class _Pending:
    """A sample with missing members, or its state once all members have come."""

    place: int
    offset: int
    missing: int
    reason: str | None = None
    passed_over: set[str] = field(default_factory=set)
    """Fields that the guess would have read if this sample had been the first."""
    found: dict[str, str] = field(default_factory=dict)


class _ShardScan:
    """The samples of one tar during its scan."""

    def __init__(self, scanner: Scanner, name: str) -> None:
        self.scanner = scanner
        self.name = name
        self.accepted = 0
        self._index = MemberIndexBuilder(len(scanner.layout.members))
        self._pending: dict[str, _Pending] = {}
        self._done: set[str] = set()
        self._keep: list[int] = []
        self._last_key: str | None = None
        # By key: place of the first member that the guess ignores, its name, and its fields.
        self._others: dict[str, tuple[int, str, set[str]]] = {}

    def take(self, walk: TarWalk, member: TarMember) -> None:
        """Process one member."""
        counts = self.scanner.tally.counts
        if not member.is_file:
            counts["no_files"] += 1
            return
        try:
            parts = split_name(member.name.decode("utf-8"))
        except UnicodeDecodeError:
            self._refuse(0, member.data_at, "key is not UTF-8", repr(member.name)[2:-1])
            return
        if parts is None:
            counts["other_members"] += 1
            return
        key, suffix = parts
        try:
            check_key(key, "key")
        except RowError as error:
            self._refuse(0, member.data_at, error.reason, key[:_EXCERPT_CHARS])
            return
        number = self.scanner._members.get(suffix)
        if number is None:
            self._pass_over(member, key, suffix)
            return
        sample = self._sample(key, member.data_at)
        if sample is None or self._index.record(sample.place, number)[0]:
            self._refuse(0, member.data_at, "duplicate key", f"{key}.{suffix}")
            return
        self._read(walk, member, sample, number)
        sample.missing -= 1
        # A guess is checked against all members of the key; later ones may follow.
        if not sample.missing and not self.scanner.guessed:
            self._settle(key, self._pending.pop(key))

    def _pass_over(self, member: TarMember, key: str, suffix: str) -> None:
        """Count an unread member; refuse or remember it if it should be read."""
        self.scanner.tally.counts["other_members"] += 1
        name = member.name.decode("utf-8")
        guessed = MEMBERS in self.scanner.guessed
        is_json = guessed and self.scanner.json is not None and suffix.endswith(".json")
        # webdataset too ends the key at the first dot, and mixes such samples up.
        if is_json or any(suffix.endswith("." + other) for other in self.scanner._members):
            self._refuse(0, member.data_at, DOT_IN_KEY, name)
        elif guessed:
            _, _, fields = self._others.setdefault(key, (member.data_at, name, set()))
            fields.update(filter(None, [looks_like(suffix)]))

    def finish(self) -> bytes:
        """Settle the samples with missing members, and return the index in its stored form."""
        for key, sample in self._pending.items():
            self._settle(key, sample)
        self._pending.clear()
        for key, (offset, name, _) in self._others.items():
            if key not in self._done:
                self._refuse(0, offset, NO_MEMBER, name)
        self.scanner.tally.counts["written"] += len(self._keep)
        self.accepted = len(self._keep)
        return self._index.to_bytes(sorted(self._keep))

    def _sample(self, key: str, offset: int) -> _Pending | None:
        """Return the sample that a member belongs to, or None if the sample is complete."""
        sample = self._pending.get(key)
        if sample is not None:
            if self._last_key != key:
                self.scanner.tally.counts["interleaved"] += 1
        elif key in self._done:
            return None
        else:
            place = self._index.start(key.encode("utf-8"))
            sample = _Pending(place, offset, len(self.scanner.layout.members))
            self._pending[key] = sample
        self._last_key = key
        return sample

    def _read(self, walk: TarWalk, member: TarMember, sample: _Pending, number: int) -> None:
        if member.size > MAX_ROW_BYTES:
            sample.reason = sample.reason or "member too long"
            return
        data = walk.data()
        self._index.put(sample.place, number, member.data_at, data)
        try:
            found = self.scanner.decoder.fields(number, data)
        except RowError as error:
            sample.reason = sample.reason or error.reason
        else:
            # Keep only what is needed to judge the sample.
            sample.found |= {k: v if k == "id" else k for k, v in found.items()}
            lacking = self.scanner.guessed.difference(found)
            if lacking and number == self.scanner.json:
                sample.passed_over |= fields_under_other_names(data, lacking)

    def _settle(self, key: str, sample: _Pending) -> None:
        """Accept or refuse a sample after its last member."""
        tally = self.scanner.tally
        self._done.add(key)
        reason, found = sample.reason, sample.found
        _, _, beside = self._others.get(key, (0, "", set()))
        if reason is None and not (sample.passed_over | beside) <= set(found):
            reason = LEFT_OUT
        if reason is None and "title" not in found:
            reason = "missing title"
        if reason is None and not self.scanner.new_id(found.get("id", key)):
            reason = "duplicate id"
        if reason is not None:
            self._refuse(sample.place + 1, sample.offset, reason, key)
            return
        tally.counts["rows"] += 1
        self._keep.append(sample.place)
        tally.fields |= {"id", "title", "body", *found}
        if "id" not in found:
            tally.counts["id_from_key"] += 1
        if "body" not in found:
            tally.counts["body_from_abstract" if "abstract" in found else "body_empty"] += 1

    def _refuse(self, line: int, offset: int, reason: str, excerpt: str) -> None:
        tally = self.scanner.tally
        tally.refusals.append(Refusal(self.name, line, offset, reason, excerpt))
        tally.counts["rows"] += 1
        tally.counts["refused"] += 1
        if tally.counts["rows"] == tally.counts["refused"] == _HOPELESS_SAMPLES:
            tally.check(0.0)
