"""Define what differs between kinds of shard sets."""

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
"""A row of the article set, as the type in a sample."""


class SampleCounter(ABC):
    """Counts the samples of a set for ``tnr shards stats``.

    It keeps four bytes per sample and length, plus what a kind adds.

    Attributes:
        lengths: Lengths of the samples, by the name of the counted items.
        categories: Number of samples by category.
        fields: Number of samples in which each field exists and is not empty.
    """

    names: ClassVar[tuple[str, ...]] = ()
    """The items to count in each sample: ``title words``, ``candidates``, …"""
    settings: ClassVar[Mapping[str, str]] = {}
    """Counted items that a setting of a run limits, with the setting; texts always have one."""
    not_drawn: ClassVar[tuple[str, ...]] = ()
    """Counted items that the table shows without bars."""

    def __init__(self) -> None:
        """Start with zero counts."""
        self.lengths = {name: array("I") for name in self.names}
        self.categories: Counter[str] = Counter()
        self.fields: Counter[str] = Counter()

    def add(self, sample: dict[str, Any]) -> None:
        """Count the next sample."""
        self.fields.update(name for name, value in sample.items() if value not in ("", [], None))
        self.measure(sample)

    @abstractmethod
    def measure(self, sample: dict[str, Any]) -> None:
        """Append the sample's lengths to :attr:`lengths`."""

    def duplicates(self) -> dict[str, int]:
        """Return the number of samples that repeat an earlier one, by the repeated part."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return single values of the set, by their names."""
        return {}


class SetKind:
    """One kind of shard set."""

    name: ClassVar[str]
    """Name in the manifest: the samples, in the plural."""
    prefix: ClassVar[str]
    """Prefix of the shards' names: ``<prefix>-000000.tar``; lower-case letters and digits."""
    sample: ClassVar[type]
    """The type of a sample, as msgspec decodes it from JSON; further fields are allowed."""
    row_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of :attr:`sample` that are lists of rows of the article set: ``tnr shards verify``
    checks that these rows exist, ``tnr shards show --articles`` prints their titles instead."""
    rows_of: ClassVar[str] = "articles"
    """The kind of the set to which :attr:`row_fields` refer."""
    counter: ClassVar[type[SampleCounter]]
    """Counts samples for ``tnr shards stats``."""

    @classmethod
    def problem(cls, sample: Any, manifest: "Manifest") -> str | None:
        """Describe what is wrong with a sample of the right type, or return None."""
        return None

    @classmethod
    def notes(cls, result: "BuildResult") -> Iterable[str]:
        """Yield notes on the set for the end of a build."""
        return ()

    @classmethod
    def orders(
        cls, shard_set: "ShardSet", windows: Sequence[int], asked: Namespace
    ) -> tuple[list[dict[str, Any]], str]:
        """Measure training orders of a set; by default, training visits samples.

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
