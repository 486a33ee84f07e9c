"""What a teacher's column is made from. Whoever reads a column asks for exactly this, field by
field.

Stage I (``text``): title and body vectors of every article, by a post-trained news encoder;
``logits``: what they score each body against its title and the negatives of one epoch.
Stage II (``news``, ``clicks``): title vectors of every article, one user vector for every distinct
history of the log, and the score of each candidate of every impression, by a finetuned recommender.
"""

from typing import Any

from shards.files import fingerprint
from shards.negatives import Negatives
from shards.reader import ShardSet
from trainer.errors import ModelError
from trainer.export.folder import Export

FORMAT = 1
CLICKS_FORMAT = 2
"""Of columns over impressions: since 2, impressions with one history share its user vector."""
TEXT = "teacher-text"
LOGITS = "teacher-logits"
NEWS = "teacher-news"
CLICKS = "teacher-clicks"
EXACT = "teacher-news-exact"
"""Working column: news vectors in float32, there while a teacher's stage II cells are filled."""


def teacher_identity(teacher: Export) -> dict[str, Any]:
    """The fields that tell one teacher's outputs from another's, whatever they are computed
    over.

    What it reads of an article is among them only where that is other than the title alone, so
    that columns that were filled before there was a choice stay what they are.
    """
    info = teacher.info
    title_alone = (("title", info["max_title_tokens"]),)
    other = {"news_text": [list(part) for part in teacher.news_parts]}
    return ({} if teacher.news_parts == title_alone else other) | {
        "format": FORMAT,
        "teacher_weights_sha256": teacher.weights_sha256,
        "teacher_kind": info["kind"],
        "model_settings": info["model_settings"],
        "tokenizer_sha256": info["tokenizer_sha256"],
        "max_title_tokens": info["max_title_tokens"],
        "pad_to_max": info["pad_to_max"],
    }


def text_identity(teacher: Export, articles: ShardSet, dtype: str, compute: str) -> dict[str, Any]:
    """What a stage I column is made from.

    Raises:
        ModelError: The teacher was not post-trained on bodies, so no body length is known.
    """
    if not teacher.info.get("max_body_tokens"):
        raise ModelError(
            f"{teacher.folder} knows no max_body_tokens: it was not post-trained on title and body "
            "pairs, so it cannot be a stage I teacher"
        )
    return teacher_identity(teacher) | {
        **_damaged(teacher, articles),
        "max_body_tokens": teacher.info["max_body_tokens"],
        "articles": articles.fingerprint,
        "dtype": dtype,
        "compute": compute,
    }


def logits_identity(
    teacher: Export, articles: ShardSet, dtype: str, compute: str, negatives: Negatives, epoch: int
) -> dict[str, Any]:
    """What a column of stage I logits is made from: the vectors, and everything that decides which
    negatives are drawn.

    Raises:
        ModelError: The teacher was not post-trained on bodies.
    """
    order = negatives.order
    drawn = {
        "seed": order.seed,
        "epoch": epoch,
        "num_negatives": negatives.count,
        "negatives_from": negatives.source,
    }
    if negatives.source == "window":
        drawn["window_shards"] = order.window_shards
    if len(order.skipped):
        drawn["order_without_damaged"] = order.fingerprint
    return text_identity(teacher, articles, dtype, compute) | drawn


def news_identity(teacher: Export, articles: ShardSet, dtype: str, compute: str) -> dict[str, Any]:
    """What a stage II column over articles is made from.

    Raises:
        ModelError: The teacher has no user encoder.
    """
    _check_recommender(teacher)
    return teacher_identity(teacher) | {
        **_damaged(teacher, articles),
        "articles": articles.fingerprint,
        "dtype": dtype,
        "compute": compute,
    }


def clicks_identity(
    teacher: Export, articles: ShardSet, impressions: ShardSet, dtype: str, compute: str
) -> dict[str, Any]:
    """What a stage II column over impressions is made from.

    Raises:
        ModelError: The teacher has no user encoder.
    """
    return news_identity(teacher, articles, dtype, compute) | {
        "format": CLICKS_FORMAT,
        "impressions": impressions.fingerprint,
        "history_length": teacher.info["history_length"],
    }


def _damaged(teacher: Export, articles: ShardSet) -> dict[str, Any]:
    """Which articles had empty texts because they were damaged, where any had: once the shard is
    mended and tokenized again, these have others.

    Whoever reads a column need not have the teacher's tokens. Nothing then tells of such articles,
    and a column is asked for that was filled without any.
    """
    rows = teacher.damaged_rows(articles)
    return {"damaged_rows": fingerprint(rows)} if rows else {}


def _check_recommender(teacher: Export) -> None:
    if not teacher.is_recommender:
        raise ModelError(
            f"{teacher.folder} has no user encoder: stage II needs finetuned teachers "
            "(tnr train finetune), not post-trained ones"
        )
