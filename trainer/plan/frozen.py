"""Disk size of the column of frozen layers' states."""

from pathlib import Path

import numpy as np

from trainer.config.clicks import ClickConfig
from trainer.config.schema import TrainConfig
from trainer.frozen.fill import column_bytes
from trainer.plan.data import Counts
from trainer.plan.disk import DiskItem
from trainer.plan.meta import backbone_size
from trainer.tasks.sources import Sources


def frozen_column(
    config: TrainConfig, width: int | None, sources: Sources | None, counts: Counts | None
) -> DiskItem | None:
    """Return the column that a run reads, existing or not; None if it reads none.

    Args:
        config: The run.
        width: Width of the language model; None reads it from the run's configurations.
        sources: The run's data, if they exist: then the tokens are counted.
        counts: Rows otherwise: then every text is assumed to be as long as allowed.
    """
    if not isinstance(config, ClickConfig) or config.model.frozen_states == "off":
        return None
    if sources is None and counts is None:
        return None
    width = _width_of(config) if width is None else width
    if sources is not None:
        from trainer.tasks.finetune.clicks import news_texts

        articles = sources.articles.num_rows
        lengths = news_texts(config, sources.tokens).lengths(np.arange(articles))
        tokens, told, where = int(lengths.sum()), "", str(sources.articles.columns_dir)
    else:
        assert counts is not None
        articles = counts.articles
        longest = sum(limit for _, limit in config.data.news_parts)
        tokens, told, where = articles * longest, ", at most", "."
    each = np.dtype(config.model.frozen_states).itemsize
    return DiskItem(
        what=(
            f"column of frozen layers' states{told} ({tokens:,} tokens x {width} x {each} bytes; "
            "made once for all runs with these layers)"
        ),
        bytes=column_bytes(tokens, articles, width, config.model.frozen_states),
        where=where,
    )


def _width_of(config: TrainConfig) -> int:
    """Return the width of a run's language model; only configurations are read.

    Raises:
        ModelError: The model does not exist on this machine.
    """
    model = config.model
    is_there = model.init is not None and (Path(model.init) / "config.json").is_file()
    if model.backbone.name == "random" and not is_there:
        return model.backbone.hidden_size
    return backbone_size(model).width
