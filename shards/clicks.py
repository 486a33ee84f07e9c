"""Store the click log as columns: each impression's history, candidates, labels, user and time.

The column set ``clicks`` of an impression set has the same rows as the set:

- ragged ``history`` int32: articles the user had clicked, oldest first, as rows of the article set;
- ragged ``candidates`` int32: articles that were shown;
- ragged ``clicked`` uint8, one per candidate, only if the log has labels;
- ragged ``units`` int32: positions, among the candidates, of the clicks that can be trained on;
- ``user`` int32, numbered by first appearance; ``time`` int64, seconds since 1970 UTC, -1 if
unknown.

A training unit is one click, in the order of the log. Its negatives are candidates of the same
impression whose article was not clicked in the impression: if an article is shown twice and clicked
once, neither position is a negative. A click without any negative in its impression cannot be
trained on, so it is not a unit (``num_left_out`` counts such clicks). If an impression has fewer
negatives than requested, they repeat in their order.
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
        labelled: whether the log records clicks.
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
            num_articles: rows of its article set, if known; a log that names other rows is then
                refused at its first read.

        Raises:
            ColumnError: the column is missing, incomplete or has another format.
            DamageError: a tensor has a type that no version writes.
        """
        return cls(ColumnReader.open(impression_set, CLICKS, made_from()), num_articles)

    @property
    def num_left_out(self) -> int:
        """Clicks that are not training units, because their impressions have no negatives."""
        if not self.labelled:
            return 0
        shards = range(len(self.clicks_per_shard))
        clicks = sum(int(self.reader.cell(shard)["clicked.values"].sum()) for shard in shards)
        return clicks - self.num_clicks

    def click(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the impression and the position of training units.

        Args:
            index: int64[n], unit numbers.

        Returns:
            (impression_row int64[n], position int64[n] among the impression's candidates).

        Raises:
            IndexError: a unit number is out of range.
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
        """Find training units whose impression shows, or whose user read, one of these articles.

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
        """Read the last ``length`` clicks before each impression, right-aligned.

        Args:
            rows: int64[n], impression rows.
            length: H.

        Returns:
            (article rows int64[n, H], -1 in empty slots; mask bool[n, H], False in empty slots).
        """
        values, offsets = self.reader.gather_ragged("history", rows, last=length)
        articles = pad(values, offsets, length, -1, right_aligned=True)
        return articles, articles >= 0

    def candidates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the articles shown in impressions: (article rows int64[k], offsets int64[n + 1])."""
        values, offsets = self.reader.gather_ragged("candidates", rows)
        return values.astype(np.int64), offsets

    def clicked(self, rows: np.ndarray) -> np.ndarray:
        """Read the labels of candidates, uint8[k], in the order of :meth:`candidates`.

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
        """Read the users of impressions, numbered by first appearance in the log, int32[n]."""
        return self.reader.gather("user", rows)

    def time(self, rows: np.ndarray) -> np.ndarray:
        """Read the times of impressions in seconds since 1970 UTC, -1 if unknown, int64[n]."""
        return self.reader.gather("time", rows)

    def sample_negatives(
        self, seed: int, click_units: np.ndarray, epochs: np.ndarray, count: int
    ) -> np.ndarray:
        """Draw candidates of the same impression for every click, from articles not clicked in it.

        The positions are distinct if the impression has enough negatives; else they repeat in the
        order drawn. The draw depends on (seed, epoch, click unit) alone.

        Args:
            seed: the run's seed.
            click_units: int64[n].
            epochs: int64[n]; zeros draw the same in every epoch.
            count: negatives per click (S = 4 in the paper).

        Returns:
            int64[n, count], positions among the impression's candidates.

        Raises:
            IndexError: a click number is out of range.
            DataError: the log has no labels, or its column is of a version that could take a
                repeated article as a negative of itself.
        """
        click_units = np.asarray(click_units, dtype=np.int64)
        rows, _ = self.click(click_units)
        clicked, offsets = self._clicked(rows)
        candidates, shown = self.candidates(rows)
        if not np.array_equal(shown, offsets):
            raise DamageError(
                f"{self.reader.folder} does not have one label per candidate: it was edited; run "
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
