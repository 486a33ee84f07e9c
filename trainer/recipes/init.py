"""Settings that an export determines for a run that starts from it (``model.init``).

The export's pooling and widths must be kept, and the lengths of its texts are those that it was
made for. So they are the defaults of a run that starts from it: they override the schema's defaults
and those of the recipes that come with the project, and anything set by hand overrides them. A
different width or pooling set by hand is refused when the model is built; lengths may be changed.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.files import read_json
from trainer.config.parts import part_class
from trainer.export.info import INFO, read_info
from trainer.models.poolings import POOLINGS
from trainer.models.user_encoders import USER_ENCODERS

_CONFIG = "config.json"


@dataclass(frozen=True)
class _NewsEncoder:
    pooling: str | None = None
    pooling_mask: bool | None = None
    query_dim: int | None = None
    news_dim: int | None = None


@dataclass(frozen=True)
class _Recommender:
    """``config.json`` of a recommender; a news encoder's does not have ``news_encoder``."""

    news_encoder: _NewsEncoder | None = None
    user_encoder: str | None = None
    history_padding: str | None = None
    query_dim: int | None = None


def settings_of_export(init: str, *, reads_clicks: bool) -> dict[str, Any]:
    """Return the dotted settings that an export determines for a run.

    A missing export determines nothing. Not every task reads all of the settings.

    Args:
        init: Folder of the export.
        reads_clicks: Whether the run has a user encoder.

    Raises:
        DamageError: A file of the export is invalid or was edited.
        ModelError: The export has another format.
    """
    folder = Path(init)
    if not (folder / INFO).is_file():
        return {}
    return _of_export(folder, reads_clicks)


def news_dim_of(folder: Path) -> int | None:
    """Read the width of an export's vectors; None if its ``config.json`` lacks it.

    Raises:
        DataError: The file is unreadable or invalid.
    """
    return _config_of(folder)[1].news_dim


def _config_of(folder: Path) -> tuple[_Recommender, _NewsEncoder]:
    recommender = read_json(folder / _CONFIG, _Recommender)
    return recommender, recommender.news_encoder or read_json(folder / _CONFIG, _NewsEncoder)


def _of_export(folder: Path, reads_clicks: bool) -> dict[str, Any]:
    info = read_info(folder)
    recommender, encoder = _config_of(folder)
    known: dict[str, Any] = {
        "model.pooling": encoder.pooling,
        "model.pooling_mask": encoder.pooling_mask,
        "model.news_dim": encoder.news_dim,
        # An adopted encoder has no queries: its query width is only the schema's default.
        "model.query_dim": encoder.query_dim if _has_queries(encoder.pooling) else None,
        "data.pad_to_max": info.get("pad_to_max"),
        "data.max_title_tokens": info.get("max_title_tokens"),
        "data.max_body_tokens": info.get("max_body_tokens"),
    }
    parts = info.get("news_text") or []
    known |= {f"data.max_{field}_tokens": tokens for field, tokens in parts}
    if parts:
        known["data.news_text"] = [field for field, _ in parts]
    if reads_clicks and recommender.news_encoder is not None:
        known |= {
            "model.user_encoder": recommender.user_encoder,
            "model.history_padding": recommender.history_padding,
            "model.query_dim": recommender.query_dim,
            "data.history_length": info.get("history_length"),
        }
    written = read_json(folder / _CONFIG, dict[str, Any])
    for registry, name, settings in (
        (POOLINGS, encoder.pooling, written.get("news_encoder", written)),
        (USER_ENCODERS, recommender.user_encoder, written),
    ):
        if name is not None and name in registry:
            own = dataclasses.fields(part_class(registry, name))
            known |= {f"model.{field.name}": settings.get(field.name) for field in own}
    return {key: value for key, value in known.items() if value is not None}


def _has_queries(pooling: str | None) -> bool:
    return (
        pooling is not None
        and pooling in POOLINGS
        and "query_dim" in part_class(POOLINGS, pooling).fixed
    )
