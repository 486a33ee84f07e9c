"""Define sets of articles: texts by id."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.set_kinds.base import SampleCounter, SetKind

if TYPE_CHECKING:
    from shards.intake import BuildResult


@dataclass(frozen=True, slots=True)
class Article:
    """A sample."""

    id: str
    title: str
    body: str


class ArticleCounter(SampleCounter):
    """Counts words, categories, and repeated texts; keeps eight bytes per text."""

    names = ("title words", "body words", "abstract words")

    def __init__(self) -> None:
        """Start with zero counts."""
        super().__init__()
        self._hashes = {name: array("Q") for name in ("title and body", "title", "body")}

    def measure(self, sample: dict[str, Any]) -> None:
        """Count words, the category and the texts."""
        self.lengths["title words"].append(len(sample["title"].split()))
        self.lengths["body words"].append(len(sample["body"].split()))
        if "abstract" in sample:
            self.lengths["abstract words"].append(len(sample["abstract"].split()))
        if "category" in sample:
            self.categories[sample["category"]] += 1
        title, body = sample["title"].encode(), sample["body"].encode()
        self._hashes["title"].append(_hash(title))
        if body:
            self._hashes["body"].append(_hash(body))
            self._hashes["title and body"].append(_hash(title + b"\0" + body))

    def facts(self) -> dict[str, Any]:
        """Return the number of empty bodies."""
        return {"empty bodies": sum(not words for words in self.lengths["body words"])}

    def duplicates(self) -> dict[str, int]:
        """Return the number of repeated titles, bodies and pairs of both."""
        return {
            f"same {name}": len(hashes) - len(np.unique(np.frombuffer(hashes, dtype=np.uint64)))
            for name, hashes in self._hashes.items()
            if hashes
        }


class Articles(SetKind):
    """Articles, which click logs name by row."""

    name = "articles"
    prefix = "news"
    sample = Article
    counter = ArticleCounter

    @classmethod
    def notes(cls, result: "BuildResult") -> Iterator[str]:
        """Yield notes on suspicious fields of the inputs."""
        from shards.tables import TSV_REMEDY, shown_names

        counts = result.shard_set.manifest.counts
        if rows := counts.get("rows_in_quotes"):
            yield f"{rows:,} rows have fields in quotes, which stay in the texts; {TSV_REMEDY}"
        if counts.get("body_empty") == result.shard_set.num_rows:
            fields = result.unused_fields
            unused = f" (unused: {shown_names(fields)})" if fields else ""
            yield (
                "no article has a body; say which field to use with --body-field, or give"
                f" --bodies FILE{unused}"
            )


def _hash(text: bytes) -> int:
    """Hash a text to 64 bits; two million texts rarely (1e-7) collide."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
