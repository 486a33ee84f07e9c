"""What a kind of shard set says about itself: everything that differs from kind to kind."""

from abc import ABC, abstractmethod
from argparse import Namespace
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from shards.errors import UsageError

if TYPE_CHECKING:
    from shards.intake import BuildResult
    from shards.manifest import Manifest
    from shards.reader import ShardSet

Row = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
"""A row of the article set, in the type of a sample."""


class SampleCounter(ABC):
    """Counts the samples of a set for ``tnr shards stats``.

    Four bytes a sample and length are kept, and what a kind adds.

    Attributes:
        lengths: Lengths of the samples, by the names of what is counted.
        categories: Samples by category.
        fields: In how many samples each field is there and not empty.
    """

    names: ClassVar[tuple[str, ...]] = ()
    """What is counted in each sample: ``title words``, ``candidates``, …"""
    settings: ClassVar[Mapping[str, str]] = {}
    """Of these, what a setting of a run limits, and the setting; texts have theirs anyway."""
    not_drawn: ClassVar[tuple[str, ...]] = ()
    """Of these, what the table shows without bars."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.lengths = {name: array("I") for name in self.names}
        self.categories: Counter[str] = Counter()
        self.fields: Counter[str] = Counter()

    def add(self, sample: dict[str, Any]) -> None:
        """Count the next sample."""
        self.fields.update(name for name, value in sample.items() if value not in ("", [], None))
        self.measure(sample)

    @abstractmethod
    def measure(self, sample: dict[str, Any]) -> None:
        """Append to :attr:`lengths` what the sample has of each."""

    def duplicates(self) -> dict[str, int]:
        """Return how many samples repeat an earlier one, by what is the same."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return single values of the set, by their names."""
        return {}


class SetKind:
    """One kind of shard set."""

    name: ClassVar[str]
    """What the manifest calls it: what its samples are, in the plural."""
    prefix: ClassVar[str]
    """What the shards are called: ``<prefix>-000000.tar``; lower-case letters and digits."""
    sample: ClassVar[type]
    """The type of a sample, as msgspec decodes it from JSON; further fields are allowed."""
    row_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of :attr:`sample` that are lists of rows of the article set: ``tnr shards verify``
    looks whether that has them, ``tnr shards show --articles`` prints titles in their place."""
    rows_of: ClassVar[str] = "articles"
    """The kind of the set that :attr:`row_fields` lie in."""
    counter: ClassVar[type[SampleCounter]]
    """Counts samples for ``tnr shards stats``."""

    @classmethod
    def problem(cls, sample: Any, manifest: "Manifest") -> str | None:
        """Say what is wrong with a sample that has the right type, or None."""
        return None

    @classmethod
    def notes(cls, result: "BuildResult") -> Iterable[str]:
        """Yield what the end of a build should tell about the set."""
        return ()

    @classmethod
    def orders(
        cls, shard_set: "ShardSet", windows: Sequence[int], asked: Namespace
    ) -> tuple[list[dict[str, Any]], str]:
        """Measure training orders of a set; training visits samples, unless a kind says otherwise.

        Args:
            shard_set: A set of this kind.
            windows: Sizes of the windows, in shards.
            asked: The options of ``tnr shards stats --order``.

        Returns:
            The measures, ready for JSON, and a table of them.

        Raises:
            UsageError: An option does not fit the kind.
        """
        from shards.mixing import measure_mixing, mixing_table
        from shards.order import EpochOrder

        if asked.user_block is not None:
            where = shard_set.location
            raise UsageError(f"--user-block is for click logs; {where} holds {cls.name}")
        counts = [shard.samples for shard in shard_set.shards]
        sizes = [shard.bytes for shard in shard_set.shards]
        orders = (EpochOrder(counts, shard_set.fingerprint, asked.seed, n) for n in windows)
        measured = [measure_mixing(order, asked.global_batch, sizes) for order in orders]
        table = mixing_table(measured, str(shard_set.path), cls.name)
        return [each.to_dict() for each in measured], table
