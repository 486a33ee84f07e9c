"""Shard sets: articles and click logs as indexed WebDataset tars, with columns beside them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.reader import ShardSet

__all__ = ["ShardSet"]


def __getattr__(name: str) -> Any:
    """Import ``ShardSet`` when it is first asked for, so that ``import shards`` stays light."""
    if name == "ShardSet":
        from shards.reader import ShardSet

        return ShardSet
    raise AttributeError(f"module 'shards' has no attribute {name!r}")
