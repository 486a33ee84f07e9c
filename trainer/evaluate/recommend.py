"""What a history would be shown: articles ranked for one user, for a person to look at.

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
    """It is in the history."""
    shown: bool
    """The impression showed it."""
    clicked: bool
    """It is known to have been clicked there."""


@dataclass(frozen=True, kw_only=True)
class Recommendations:
    """A ranked list with what it was made for.

    Attributes:
        about: Whose list it is.
        history: Samples of the articles that were read, oldest first.
        num_history_used: So many of the last of them are what the model reads.
        top: The best of those ranked.
        num_ranked: How many were ranked.
        num_read: How many more were left out because they had been read.
        num_damaged: How many more were left out because their text was damaged.
        clicked_ranks: Ranks of what was clicked in the impression, as far as it was ranked.
        all_equal: Every score is the same, so the order says nothing.
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
        """As JSON values."""
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
        export: The model.
        articles: Article set that the history is of, with a token column of the model's tokenizer.
        reader: Whose list it is.
        pool: Article set to rank, with such a column, too; None for ``articles``.
        only_shown: Rank what the reader's impression showed instead, all of it.
        top: How many to name.
        include_read: Rank articles that are in the history, too.
        vectors: File of the pool's vectors: read if it is there, else made.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ModelError: The export has no user encoder, or there is no token column for it.
        DataError: The file of vectors is another model's or another set's.
        UsageError: Nothing is left to rank.
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
    """What is ranked: rows of an article set, and which of its rows the reader knows."""

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
    """The articles to rank."""
    read, shown, clicked = reader.history, reader.shown, reader.clicked
    if pool is None or pool.fingerprint == articles.fingerprint:
        pool = articles
    else:
        # In another set an article is known by its id alone, and what a log showed is of no use.
        found = find_articles(pool, {str(sample.get("id", "")) for sample in history})
        read = np.array(sorted(found.values()), dtype=np.int64)
        shown = clicked = np.zeros(0, dtype=np.int64)
    rows = np.unique(shown) if only_shown else np.arange(pool.num_rows, dtype=np.int64)
    damaged = np.isin(rows, export.tokens(pool).skipped_rows)
    left_out = np.isin(rows, read) & ~damaged & (not (with_read or only_shown))
    if (damaged | left_out).all():
        raise UsageError(
            f"nothing is left to rank: {left_out.sum():,} articles have been read already "
            f"(--include-read ranks them too), and the text of {damaged.sum():,} was damaged"
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
    """Vectors float32[len(rows), E] of some articles."""
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
    """Vectors float32[N, E] of a whole set, from a file; made and written if it is not there."""
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
        # The last two are what safetensors has for types that NumPy lacks, such as bfloat16.
        raise DataError(
            f"{path} holds no article vectors ({error}); name another file, or remove it to make "
            "it again"
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
    """Scores float32[N] of articles for a history, which is laid out as in evaluation."""
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
