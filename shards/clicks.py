"""The click log as columns: history, candidates, labels, user and time of every impression.

The column set ``clicks`` of an impression set, row for row with it:

- ragged ``history`` int32: articles the user had clicked, oldest first, as rows of the article set;
- ragged ``candidates`` int32: articles that were shown;
- ragged ``clicked`` uint8, one a candidate, only where the log has labels;
- ragged ``units`` int32: places, among the candidates, of the clicks that can be trained on;
- ``user`` int32, numbered by first appearance; ``time`` int64, seconds since 1970 UTC, -1 if
unknown.

A training unit is one click, in the order of the log. Its negatives are candidates of the same
impression whose article was not clicked in it: an article that is shown twice and clicked once is
none at either place. A click whose impression has no such candidate has nothing to be told apart
from, so it is no unit (``num_left_out`` counts them); where there are fewer than are asked for,
they come again in their order.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from shards.columns import ColumnReader, ColumnWriter
from shards.errors import DataError
from shards.negatives import draw_distinct, sample_keys
from shards.ragged import join, offsets_from_lengths, pad, row_of_value
from shards.reader import ShardSet

CLICKS = "clicks"
_FORMAT = 1
_CANDIDATES = 0x43414E4449444154  # keeps draws over candidates apart from draws over articles
_MIND_TIME = "%m/%d/%Y %I:%M:%S %p"


def parse_time(text: str) -> int:
    """Seconds since 1970 UTC of an ISO 8601 time or of MIND's ``11/15/2019 8:55:22 AM``; -1 if
    neither.

    A time without a zone is taken as UTC.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = datetime.strptime(text, _MIND_TIME)
        except ValueError:
            return -1
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp())


def made_from() -> dict[str, Any]:
    """What a click column is made from, beside its shard set."""
    return {"format": _FORMAT}


def write_click_column(impression_set: ShardSet) -> ColumnReader:
    """Write the ``clicks`` column from the tars of an impression set; cells that are there stay.

    Raises:
        DataError: the set does not hold impressions, or a sample is not one.
        ColumnError: the column cannot be written.
    """
    if impression_set.kind != "impressions":
        raise DataError(f"{impression_set.path} holds {impression_set.kind}, not impressions")
    writer = ColumnWriter(impression_set, CLICKS, made_from())
    missing = set(writer.missing())
    users: dict[str, int] = {}
    if missing:
        # Users are numbered by first appearance in the whole log, so all shards up to the last
        # missing one are read.
        for shard in range(max(missing) + 1):
            samples = list(impression_set.samples(shard))
            for sample in samples:
                users.setdefault(str(sample.get("user", "")), len(users))
            if shard in missing:
                first_row = int(impression_set.shard_starts[shard])
                labelled = impression_set.manifest.labelled
                writer.write(shard, _tensors(samples, users, labelled, first_row))
    return ColumnReader.open(impression_set, CLICKS, made_from())


def _tensors(
    samples: list[dict[str, Any]], users: Mapping[str, int], labelled: bool, first_row: int
) -> dict[str, np.ndarray]:
    """The cell of one shard."""
    try:
        history, history_offsets = join([s.get("history", []) for s in samples], np.int32)
        candidates, offsets = join([s["candidates"] for s in samples], np.int32)
        clicked, clicked_offsets = join(
            [s["clicks"] if labelled else [] for s in samples], np.uint8
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"one of the impressions from row {first_row} on cannot be used: {error!r}; "
            "build the set again"
        ) from error
    tensors = {
        "history.values": history,
        "history.offsets": history_offsets,
        "candidates.values": candidates,
        "candidates.offsets": offsets,
        "user": np.array([users[str(s.get("user", ""))] for s in samples], dtype=np.int32),
        "time": np.array([parse_time(str(s.get("time", ""))) for s in samples], dtype=np.int64),
    }
    if labelled:
        if (clicked_offsets != offsets).any() or (clicked > 1).any():
            row = first_row + int(np.argmax(np.diff(clicked_offsets) != np.diff(offsets)))
            raise DataError(
                f"impression {row}: its clicks must be 0 or 1, one a candidate; build the set again"
            )
        tensors |= {"clicked.values": clicked, "clicked.offsets": offsets}
        tensors["units.values"], tensors["units.offsets"] = _units(candidates, clicked, offsets)
    return tensors


def _units(
    candidates: np.ndarray, clicked: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(places of the trainable clicks among the candidates int32[k], offsets int64[n + 1])."""
    places = np.flatnonzero(clicked)
    rows = row_of_value(offsets, places)
    negatives = row_of_value(offsets, _negative_places(candidates, clicked, offsets))
    keep = np.bincount(negatives, minlength=len(offsets) - 1)[rows] > 0
    kept_rows = rows[keep]
    lengths = np.bincount(kept_rows, minlength=len(offsets) - 1)
    return (places[keep] - offsets[kept_rows]).astype(np.int32), offsets_from_lengths(lengths)


def _negative_places(
    candidates: np.ndarray, clicked: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Places in the values whose article was clicked nowhere in its impression, int64[k]."""
    unclicked = np.flatnonzero(clicked == 0)
    if not len(unclicked):
        return unclicked
    impressions = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = impressions * (int(candidates.max()) + 1) + candidates
    return unclicked[np.isin(pairs[unclicked], pairs[clicked != 0], invert=True)]


class ClickColumn:
    """The click log of an impression set, by impression row and by click.

    Attributes:
        reader: the column underneath.
        num_impressions: rows of the impression set.
        labelled: whether the log says what was clicked.
        clicks_per_shard: training units of each shard, for :class:`shards.order.EpochOrder`.
        num_clicks: training units of all shards.
    """

    def __init__(self, reader: ColumnReader) -> None:
        """Use :meth:`open`."""
        self.reader = reader
        self.fingerprint = reader.fingerprint
        self.num_impressions = reader.num_rows
        self.labelled = "clicked.values" in reader.tensors
        num_shards = len(reader.shard_set.manifest.shards)
        self.clicks_per_shard: list[int] = [
            int(reader.cell(shard)["units.offsets"][-1]) if self.labelled else 0
            for shard in range(num_shards)
        ]
        self._unit_starts = offsets_from_lengths(np.array(self.clicks_per_shard, dtype=np.int64))
        self.num_clicks = int(self._unit_starts[-1])

    @classmethod
    def open(cls, impression_set: ShardSet) -> "ClickColumn":
        """Open the click column of an impression set.

        Raises:
            ColumnError: it is missing, incomplete or of another format.
        """
        return cls(ColumnReader.open(impression_set, CLICKS, made_from()))

    @property
    def num_left_out(self) -> int:
        """Clicks that are no training units, because nothing in their impression was left
        unclicked."""
        if not self.labelled:
            return 0
        shards = range(len(self.clicks_per_shard))
        clicks = sum(int(self.reader.cell(shard)["clicked.values"].sum()) for shard in shards)
        return clicks - self.num_clicks

    def click(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The impression and the place of training units.

        Args:
            index: int64[n], unit numbers.

        Returns:
            (impression_row int64[n], position int64[n] among the impression's candidates).

        Raises:
            IndexError: there is no such unit.
        """
        index = np.asarray(index, dtype=np.int64)
        rows = np.empty(len(index), dtype=np.int64)
        positions = np.empty(len(index), dtype=np.int64)
        if not len(index):
            return rows, positions
        if index.min() < 0 or index.max() >= self.num_clicks:
            raise IndexError(
                f"clicks lie within {index.min()} .. {index.max()}, the log has {self.num_clicks}"
            )
        shards = np.searchsorted(self._unit_starts, index, side="right") - 1
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            cell = self.reader.cell(int(shard))
            local = index[here] - self._unit_starts[shard]
            starts = self.reader.shard_set.shard_starts
            rows[here] = row_of_value(cell["units.offsets"], local) + starts[shard]
            positions[here] = cell["units.values"][local]
        return rows, positions

    def units_with(self, articles: np.ndarray) -> np.ndarray:
        """Training units whose impression shows, or whose user has read, one of these articles.

        Args:
            articles: int64[k], rows of articles.

        Returns:
            int64[u], unit numbers, ascending.
        """
        found = [np.empty(0, dtype=np.int64)]
        for shard in range(len(self.clicks_per_shard)) if len(articles) and self.labelled else ():
            cell = self.reader.cell(shard)
            touched = np.zeros(len(cell["units.offsets"]) - 1, dtype=bool)
            for name in ("history", "candidates"):
                places = np.flatnonzero(np.isin(cell[f"{name}.values"], articles))
                touched[row_of_value(cell[f"{name}.offsets"], places)] = True
            of_unit = np.repeat(touched, np.diff(cell["units.offsets"]))
            found.append(np.flatnonzero(of_unit) + self._unit_starts[shard])
        return np.concatenate(found)

    def history(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The last ``length`` clicks before each impression, right-aligned.

        Args:
            rows: int64[n], impression rows.
            length: H.

        Returns:
            (article rows int64[n, H], -1 where there is none; mask bool[n, H], True where there is
            one).
        """
        values, offsets = self.reader.gather_ragged("history", rows, last=length)
        articles = pad(values, offsets, length, -1, right_aligned=True)
        return articles, articles >= 0

    def candidates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Articles shown in each impression: (article rows int64[k], offsets int64[n + 1])."""
        values, offsets = self.reader.gather_ragged("candidates", rows)
        return values.astype(np.int64), offsets

    def clicked(self, rows: np.ndarray) -> np.ndarray:
        """Labels of the candidates of each impression, uint8[k], in the order of
        :meth:`candidates`.

        Raises:
            DataError: the log has no labels.
        """
        return self._clicked(rows)[0]

    def _clicked(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.labelled:
            raise DataError(
                f"{self.reader.shard_set.path} has no labels: it can be predicted, but neither "
                "trained on nor evaluated"
            )
        return self.reader.gather_ragged("clicked", rows)

    def user(self, rows: np.ndarray) -> np.ndarray:
        """Users of impressions, numbered by first appearance in the log, int32[n]."""
        return self.reader.gather("user", rows)

    def time(self, rows: np.ndarray) -> np.ndarray:
        """Times of impressions in seconds since 1970 UTC, -1 where unknown, int64[n]."""
        return self.reader.gather("time", rows)

    def sample_negatives(
        self, seed: int, click_units: np.ndarray, epochs: np.ndarray, count: int
    ) -> np.ndarray:
        """Candidates of the same impression for every click, of articles not clicked in it.

        Distinct places where the impression has enough of them, else they come again in the order
        drawn. Keyed by (seed, epoch, click unit) alone.

        Args:
            seed: the run's seed.
            click_units: int64[n].
            epochs: int64[n]; zeros draw the same in every epoch.
            count: negatives a click (S = 4 in the paper).

        Returns:
            int64[n, count], places among the impression's candidates.

        Raises:
            IndexError: there is no such click.
            DataError: the log has no labels, or its column is of a version that took an article
                which is shown again for a negative of itself.
        """
        click_units = np.asarray(click_units, dtype=np.int64)
        rows, _ = self.click(click_units)
        clicked, offsets = self._clicked(rows)
        unclicked = _negative_places(self.candidates(rows)[0], clicked, offsets)
        sizes = np.bincount(row_of_value(offsets, unclicked), minlength=len(rows))
        if (sizes == 0).any():
            row = int(rows[np.argmin(sizes)])
            raise DataError(
                f"impression {row} of {self.reader.shard_set.path} has no candidate that was not "
                "clicked; build the set again with --force"
            )
        keys = sample_keys(_CANDIDATES, seed, np.asarray(epochs), click_units)
        drawn = draw_distinct(keys, sizes, count)
        starts = offsets_from_lengths(sizes)[:-1]
        return unclicked[starts[:, None] + drawn] - offsets[:-1, None]

    def even_clicks(self, count: int) -> np.ndarray:
        """``count`` training units taken evenly over the log, int64[count] ascending, without
        repeats.

        All of them where there are no more than ``count``.
        """
        if count >= self.num_clicks:
            return np.arange(self.num_clicks, dtype=np.int64)
        return np.arange(count, dtype=np.int64) * self.num_clicks // count
