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

import numpy as np

from shards.click_cells import (
    CLICKS,
    made_from,
    negative_places,
    parse_time,
    write_click_column,
)
from shards.columns import ColumnReader, check_numbers, removal_command, repair_command
from shards.errors import DamageError, DataError
from shards.negatives import draw_distinct, sample_keys
from shards.ragged import offsets_from_lengths, pad, row_of_value
from shards.reader import ShardSet

_MOST_ROWS = 1 << 31
_CANDIDATES = 0x43414E4449444154  # keeps draws over candidates apart from draws over articles


class ClickColumn:
    """The click log of an impression set, by impression row and by click.

    Attributes:
        reader: the column underneath.
        num_impressions: rows of the impression set.
        labelled: whether the log says what was clicked.
        clicks_per_shard: training units of each shard, for :class:`shards.order.EpochOrder`.
        num_clicks: training units of all shards.
    """

    def __init__(self, reader: ColumnReader, num_articles: int | None = None) -> None:
        """Use :meth:`open`."""
        rows = num_articles if num_articles is not None else _MOST_ROWS
        reader.bounds.update(
            {
                "history.values": rows,
                "candidates.values": rows,
                "clicked.values": 2,
                "units.values": _MOST_ROWS,
                "user": _MOST_ROWS,
            }
        )
        check_numbers(reader, dict.fromkeys((*reader.bounds, "time"), "iu"))
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
    def open(cls, impression_set: ShardSet, num_articles: int | None = None) -> "ClickColumn":
        """Open the click column of an impression set.

        Args:
            impression_set: the set.
            num_articles: rows of its article set, where that is at hand; a log that names others
                is then refused when it is read.

        Raises:
            ColumnError: it is missing, incomplete or of another format.
            DamageError: a tensor is of a type that no version writes.
        """
        return cls(ColumnReader.open(impression_set, CLICKS, made_from()), num_articles)

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
        candidates, shown = self.candidates(rows)
        if not np.array_equal(shown, offsets):
            raise DamageError(
                f"{self.reader.folder} does not have one label a candidate: it was edited; run "
                f"`{removal_command(self.reader.shard_set, self.reader.folder)}` and "
                f"`{self.reader.repair}`"
            )
        unclicked = negative_places(candidates, clicked, offsets)
        sizes = np.bincount(row_of_value(offsets, unclicked), minlength=len(rows))
        if (sizes == 0).any():
            row = int(rows[np.argmin(sizes)])
            raise DataError(
                f"impression {row} of {self.reader.shard_set.path} has no candidate that was not "
                f"clicked; run `{removal_command(self.reader.shard_set, self.reader.folder)}` and "
                f"`{repair_command(self.reader.shard_set, CLICKS)}`"
            )
        keys = sample_keys(_CANDIDATES, seed, np.asarray(epochs), click_units)
        drawn = draw_distinct(keys, sizes, count)
        starts = offsets_from_lengths(sizes)[:-1]
        return unclicked[starts[:, None] + drawn] - offsets[:-1, None]


__all__ = ["CLICKS", "ClickColumn", "made_from", "parse_time", "write_click_column"]
