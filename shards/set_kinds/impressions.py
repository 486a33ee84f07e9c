"""Define sets of impressions: what users had read, were shown, and clicked."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from shards.errors import UsageError
from shards.set_kinds.base import Row, SampleCounter, SetKind

if TYPE_CHECKING:
    from shards.intake import BuildResult
    from shards.manifest import Manifest
    from shards.reader import ShardSet

_BLOCK = 8
"""Default block size, in clicks of a user, to compare with a plain shuffle."""


@dataclass(frozen=True, slots=True)
class Impression:
    """A sample."""

    history: list[Row]
    candidates: list[Row]
    clicks: list[Annotated[int, msgspec.Meta(ge=0, le=1)]] | None = None


class ImpressionCounter(SampleCounter):
    """Counts clicks of histories, candidates, clicks and users."""

    names = ("history", "candidates", "clicks")
    settings: ClassVar = {"history": "data.history_length"}
    not_drawn = ("clicks",)

    def __init__(self) -> None:
        """Start with zero counts."""
        super().__init__()
        self._users: set[str] = set()
        self._times: list[str] = []

    def measure(self, sample: dict[str, Any]) -> None:
        """Count articles and clicks; record the user and the time."""
        self.lengths["history"].append(len(sample["history"]))
        self.lengths["candidates"].append(len(sample["candidates"]))
        if "clicks" in sample:
            self.lengths["clicks"].append(sum(sample["clicks"]))
        self._users.add(sample["user"])
        if time := sample["time"]:
            times = [*self._times, time]
            self._times = [min(times), max(times)]

    def facts(self) -> dict[str, Any]:
        """Return users, empty histories, clicks, and the log's first and last time."""
        facts: dict[str, Any] = {
            "users": len(self._users),
            "empty histories": sum(not length for length in self.lengths["history"]),
            "labelled": "yes" if self.lengths["clicks"] else "no",
        }
        if self.lengths["clicks"]:
            facts["clicks"] = sum(self.lengths["clicks"])
        if self._times:
            facts["first time"], facts["last time"] = self._times
        return facts


class Impressions(SetKind):
    """A click log, whose articles are rows of an article set."""

    name = "impressions"
    prefix = "impressions"
    sample = Impression
    row_fields = ("history", "candidates")
    counter = ImpressionCounter

    @classmethod
    def problem(cls, sample: Impression, manifest: "Manifest") -> str | None:
        """Compare clicks with the manifest and the candidates."""
        if (sample.clicks is not None) != manifest.labelled:
            said = "with" if manifest.labelled else "without"
            return f"has clicks: {sample.clicks is not None}; the manifest says a log {said} labels"
        if sample.clicks is not None and len(sample.clicks) != len(sample.candidates):
            return f"has {len(sample.candidates)} candidates and {len(sample.clicks)} clicks"
        return None

    @classmethod
    def notes(cls, result: "BuildResult") -> Iterator[str]:
        """Yield notes on suspicious times, labels and histories."""
        from shards.click_cells import EXPECTED_TIMES

        manifest = result.shard_set.manifest
        if manifest.counts.get("unknown_time"):
            yield f"times are read as {EXPECTED_TIMES}; unknown ones lie in no period"
        if not manifest.labelled:
            yield (
                "the log has no labels (-1 clicked, -0 not): tnr predict can score it, but"
                " nothing can be trained or measured on it"
            )
        empty = manifest.counts.get("empty_history")
        if manifest.counts.get("unknown_history") and empty == manifest.num_rows:
            yield (
                "no history names an article of the set: are the ids those of --article-set,"
                " separated by spaces?"
            )

    @classmethod
    def orders(
        cls, shard_set: "ShardSet", windows: Sequence[int], asked: Namespace
    ) -> tuple[list[dict[str, Any]], str]:
        """Measure orders of clicks: shuffled click by click, and in blocks of a user's clicks."""
        from shards.click_batch import ClickRule, click_order
        from shards.clicks import ClickColumn
        from shards.mixing import measure_mixing, mixing_table
        from shards.sharing import measure_sharing, sharing_table

        clicks = ClickColumn.open(shard_set)
        rule = ClickRule(asked.seed, asked.num_negatives, asked.history_length)
        batch, ranks = asked.global_batch, asked.ranks
        if batch % ranks:
            raise UsageError(f"--global-batch {batch} cannot be shared by --ranks {ranks}")
        sizes = [shard.bytes for shard in shard_set.shards]
        blocks = [1, _BLOCK] if asked.user_block is None else [asked.user_block]
        numbers = [(window, block) for window in windows for block in blocks]
        mixing, sharing = [], []
        for window, block in numbers:
            order = click_order(clicks, asked.seed, window, block)
            mixing.append(measure_mixing(order, batch, sizes))
            sharing.append(measure_sharing(order, clicks, rule, batch // ranks, batch, ranks))
        values = [
            {**mixed.to_dict(), "user_block": block, "titles": shared.to_dict()}
            for (_, block), mixed, shared in zip(numbers, mixing, sharing, strict=True)
        ]
        table = mixing_table(mixing[:: len(blocks)], str(shard_set.path), "clicks")
        return values, f"{table}\n\n{sharing_table(numbers, mixing, sharing)}"
