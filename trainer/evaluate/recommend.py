"""Recommendations for one user: articles ranked by a model, for a person to look at.

Legend: N articles to rank, H history slots, E news width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import DamageError, DataError, ModelError, UsageError
from trainer.evaluate.readers import find_articles

if TYPE_CHECKING:
    from shards.reader import ShardSet
    from trainer.evaluate.readers import Reader
    from trainer.export.folder import Export


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """One line of a list."""

    rank: int
    score: float
    id: str
    title: str
    category: str
    read: bool
    """Whether the article is in the history."""
    shown: bool
    """Whether the impression showed the article."""
    clicked: bool
    """Whether the log records a click."""


@dataclass(frozen=True, kw_only=True)
class Recommendations:
    """A ranked list with its input.

    Attributes:
        about: Origin of the user.
        history: Samples of the articles in the history, oldest first.
        num_history_used: How many of the last of them the model reads.
        top: The best of the ranked articles.
        num_ranked: Number of ranked articles.
        num_read: Number of articles left out because they are in the history.
        num_damaged: Number of articles left out because their text is damaged.
        clicked_ranks: Ranks of the impression's clicked articles that were ranked.
        all_equal: Whether all scores are equal, so that the order means nothing.
    """

    about: str
    history: list[dict[str, Any]]
    num_history_used: int
    top: list[Recommended]
    num_ranked: int
    num_read: int
    num_damaged: int
    clicked_ranks: list[int]
    all_equal: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the list as JSON values."""
        history = [
            {key: str(sample.get(key, "")) for key in ("id", "title", "category")}
            for sample in self.history
        ]
        return vars(self) | {"history": history, "top": [vars(line) for line in self.top]}


def recommend(
    export: Export,
    articles: ShardSet,
    reader: Reader,
    *,
    pool: ShardSet | None = None,
    only_shown: bool = False,
    top: int = 10,
    include_read: bool = False,
    vectors: str | Path | None = None,
    device: str = "auto",
) -> Recommendations:
    """Rank articles for one user with an exported recommender.

    Args:
        export: Export of the model.
        articles: Article set of the history, with a token column of the model's tokenizer.
        reader: The user.
        pool: Article set to rank, also with such a column; None means ``articles``.
        only_shown: Rank all candidates of the reader's impression instead.
        top: Number of articles to return.
        include_read: Rank articles of the history, too.
        vectors: File of the pool's vectors: read if it exists, otherwise written.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ModelError: The export has no user encoder, or its token column is missing.
        DataError: The file of vectors belongs to another model or another set.
        UsageError: No articles are left to rank.
    """
    from trainer.hardware import pick_device

    _check_recommender(export)
    history = articles.read(reader.history)
    ranked = _choose(export, articles, reader, history, pool, only_shown, include_read)
    device = pick_device(device)
    model: Any = export.load_model().to(device)  # type: ignore[arg-type]
    length = int(export.info["history_length"])
    used = reader.history[max(0, len(reader.history) - length) :]
    if vectors is None:
        news_NE = _encode(export, model, ranked.articles, ranked.rows, device)
    else:
        news_NE = _stored(export, model, ranked.articles, Path(vectors), device)[ranked.rows]
    scores_N = _scores(model, news_NE, _encode(export, model, articles, used, device), length)
    order = np.argsort(-scores_N, kind="stable")  # of equal scores, the earlier article first
    clicked = np.isin(ranked.rows[order], ranked.clicked)
    return Recommendations(
        about=reader.about,
        history=history,
        num_history_used=len(used),
        top=[
            ranked.line(int(place), rank, float(scores_N[place]))
            for rank, place in enumerate(order[:top], start=1)
        ],
        num_ranked=len(ranked.rows),
        num_read=ranked.num_read,
        num_damaged=ranked.num_damaged,
        clicked_ranks=(np.flatnonzero(clicked) + 1).tolist(),
        all_equal=bool(len(scores_N) > 1 and (scores_N == scores_N[0]).all()),
    )


def _check_recommender(export: Export) -> None:
    if not export.is_recommender:
        raise ModelError(
            f"{export.folder} is a news encoder without a user encoder, so it cannot recommend; "
            f"finetune it on clicks first: tnr train finetune --model.init {export.folder}"
        )


@dataclass(frozen=True, kw_only=True)
class _Ranked:
    """Articles to rank: rows of an article set, and which of them the user knows."""

    articles: ShardSet
    rows: np.ndarray
    read: np.ndarray
    shown: np.ndarray
    clicked: np.ndarray
    num_read: int
    num_damaged: int

    def line(self, place: int, rank: int, score: float) -> Recommended:
        row = int(self.rows[place])
        sample = self.articles.sample(row)
        return Recommended(
            rank=rank,
            score=score,
            id=str(sample.get("id", "")),
            title=str(sample.get("title", "")),
            category=str(sample.get("category", "")),
            read=row in self.read,
            shown=row in self.shown,
            clicked=row in self.clicked,
        )


def _choose(
    export: Export,
    articles: ShardSet,
    reader: Reader,
    history: Sequence[Mapping[str, Any]],
    pool: ShardSet | None,
    only_shown: bool,
    with_read: bool,
) -> _Ranked:
    """Choose the articles to rank."""
    read, shown, clicked = reader.history, reader.shown, reader.clicked
    if pool is None or pool.fingerprint == articles.fingerprint:
        pool = articles
    else:
        # In another set, an article is known only by its id, and a log's candidates do not apply.
        found = find_articles(pool, {str(sample.get("id", "")) for sample in history})
        read = np.array(sorted(found.values()), dtype=np.int64)
        shown = clicked = np.zeros(0, dtype=np.int64)
    rows = np.unique(shown) if only_shown else np.arange(pool.num_rows, dtype=np.int64)
    damaged = np.isin(rows, export.tokens(pool).skipped_rows)
    left_out = np.isin(rows, read) & ~damaged & (not (with_read or only_shown))
    if (damaged | left_out).all():
        raise UsageError(
            f"no articles are left to rank: {left_out.sum():,} are in the history (--include-read "
            f"ranks them, too), and the text of {damaged.sum():,} is damaged"
        )
    return _Ranked(
        articles=pool,
        rows=rows[~damaged & ~left_out],
        read=read,
        shown=shown,
        clicked=clicked,
        num_read=int(left_out.sum()),
        num_damaged=int(damaged.sum()),
    )


def _encode(
    export: Export, model: Any, articles: ShardSet, rows: np.ndarray, device: str
) -> np.ndarray:
    """Return vectors float32[len(rows), E] of some articles."""
    from trainer.evaluate.encode import encode_articles

    return encode_articles(
        model,
        export.news_texts(export.tokens(articles)),
        rows,
        pad_to_max=bool(export.info.get("pad_to_max", False)),
        device=device,
        progress=True,
    )


def _stored(export: Export, model: Any, articles: ShardSet, path: Path, device: str) -> np.ndarray:
    """Return vectors float32[N, E] of a set from a file, which is written if missing."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save

    from shards.files import atomic_file, open_regular

    made_from = {"weights": export.weights_sha256, "articles": articles.fingerprint}
    if not path.exists():
        news_NE = _encode(export, model, articles, np.arange(articles.num_rows), device)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(save({"news": news_NE}, metadata=made_from))
        return news_NE
    open_regular(path).close()
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata, news_NE = stored.metadata() or {}, stored.get_tensor("news")
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # safetensors raises the last two for types that NumPy lacks, such as bfloat16.
        raise DataError(
            f"{path} does not hold article vectors ({error}); name another file, or remove it to "
            "make it again"
        ) from error
    differs = [key for key, value in made_from.items() if metadata.get(key) != value]
    if differs:
        raise DataError(
            f"{path} holds vectors of other {' and '.join(differs)}; name another file, or remove "
            "it to make it again"
        )
    wanted = (articles.num_rows, model.config.news_dim)
    if news_NE.shape != wanted or news_NE.dtype != np.float32 or not np.isfinite(news_NE).all():
        raise DamageError(
            f"{path} holds {news_NE.dtype}{list(news_NE.shape)}, or numbers that are not finite; "
            f"expected float32{list(wanted)}; remove it to make it again"
        )
    return news_NE


def _scores(
    model: Any, news_NE: np.ndarray, history_HE: np.ndarray, history_length: int
) -> np.ndarray:
    """Return scores float32[N] of articles for a history, laid out as in evaluation."""
    import torch

    from trainer.evaluate.encode import inference

    device = next(model.parameters()).device
    width = news_NE.shape[1]
    slots_1HE = torch.zeros(1, history_length, width, device=device)
    mask_1H = torch.zeros(1, history_length, dtype=torch.bool, device=device)
    if len(history_HE):
        slots_1HE[0, -len(history_HE) :] = torch.from_numpy(history_HE).to(device)
        mask_1H[0, -len(history_HE) :] = True
    with inference(model):
        user_1E = model.encode_users(slots_1HE, mask_1H).float()
        candidates_1NE = torch.from_numpy(news_NE)[None].to(device)
        return model.score(candidates_1NE, user_1E)[0].cpu().numpy()
