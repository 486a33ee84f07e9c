"""What a column is made from: whatever changes the values makes another column, nothing else does.

A field that is left out of an identity lets a stale column pass for the one that is asked for.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig

from shards.negatives import Negatives
from shards.order import EpochOrder
from trainer.errors import ModelError
from trainer.frozen.identity import frozen_identity
from trainer.models.backbone import Backbone
from trainer.teacher_server.kinds.clicks import ClickScores, NewsVectors
from trainer.teacher_server.kinds.logits import Logits
from trainer.teacher_server.kinds.text import TextVectors
from trainer.teacher_server.request import Source

INFO = {
    "kind": "recommender",
    "model_settings": {"news_dim": 12},
    "tokenizer_sha256": "t" * 64,
    "max_title_tokens": 10,
    "max_body_tokens": 20,
    "pad_to_max": False,
    "history_length": 5,
}


def teacher(damaged: tuple[int, ...] = (), **changes: Any) -> Any:
    """An export as identities see one; ``info`` fields, weights and texts change by keyword."""
    info = INFO | {name: value for name, value in changes.items() if name in INFO}
    return SimpleNamespace(
        info=info,
        folder="teachers/one",
        weights_sha256=changes.get("weights", "w" * 64),
        news_parts=changes.get("parts", (("title", info["max_title_tokens"]),)),
        is_recommender=info["kind"] == "recommender",
        damaged_rows=lambda articles: list(damaged),
    )


def text_identity(one: Any, articles: Any, dtype: str, compute: str) -> dict[str, Any]:
    return TextVectors(one, Source(articles, None, dtype, compute)).made_from


def news_identity(one: Any, articles: Any, dtype: str, compute: str) -> dict[str, Any]:
    return NewsVectors(one, Source(articles, None, dtype, compute)).made_from


def clicks_identity(
    one: Any, articles: Any, impressions: Any, dtype: str, compute: str
) -> dict[str, Any]:
    return ClickScores(one, Source(articles, impressions, dtype, compute)).made_from


ARTICLES, OTHERS = SimpleNamespace(fingerprint="a" * 64), SimpleNamespace(fingerprint="b" * 64)
OF_EVERY_TEACHER = {
    "weights": "x" * 64,
    "kind": "news_encoder",
    "model_settings": {"news_dim": 13},
    "tokenizer_sha256": "u" * 64,
    "max_title_tokens": 11,
    "pad_to_max": True,
    "parts": (("title", 10), ("body", 20)),
    "damaged": (3,),
}


@pytest.mark.parametrize("change", [*OF_EVERY_TEACHER, "max_body_tokens"])
def test_whatever_changes_a_teachers_texts_makes_another_column(change: str):
    value = OF_EVERY_TEACHER.get(change, 21)
    identity = text_identity(teacher(), ARTICLES, "float16", "fp32")
    assert text_identity(teacher(), ARTICLES, "float16", "fp32") == identity
    assert text_identity(teacher(**{change: value}), ARTICLES, "float16", "fp32") != identity


@pytest.mark.parametrize("change", [name for name in OF_EVERY_TEACHER if name != "kind"])
def test_whatever_changes_a_teachers_news_makes_another_column(change: str):
    changed = teacher(**{change: OF_EVERY_TEACHER[change]})
    impressions = SimpleNamespace(fingerprint="i" * 64)
    for identity in (
        lambda one: news_identity(one, ARTICLES, "float16", "fp32"),
        lambda one: clicks_identity(one, ARTICLES, impressions, "float16", "fp32"),
    ):
        assert identity(changed) != identity(teacher())


@pytest.mark.parametrize("of", [text_identity, news_identity])
def test_articles_type_and_precision_make_another_column(of: Any):
    found = [
        of(teacher(), ARTICLES, "float16", "fp32"),
        of(teacher(), OTHERS, "float16", "fp32"),
        of(teacher(), ARTICLES, "float32", "fp32"),
        of(teacher(), ARTICLES, "float16", "bf16"),
    ]
    assert all(one not in found[:number] for number, one in enumerate(found))


def test_impressions_make_another_column_and_former_ones_are_not_taken():
    found = [
        clicks_identity(teacher(), ARTICLES, SimpleNamespace(fingerprint=name), "float16", "fp32")
        for name in ("i", "j")
    ]
    assert found[0] != found[1]
    # Columns of format 1 have a user vector for each impression.
    assert found[0]["format"] != news_identity(teacher(), ARTICLES, "float16", "fp32")["format"]


def test_columns_of_teachers_that_read_titles_alone_keep_their_name():
    assert "news_text" not in text_identity(teacher(), ARTICLES, "float16", "fp32")
    assert "damaged_rows" not in text_identity(teacher(), ARTICLES, "float16", "fp32")


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Fields by which two identities differ."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def logits(order: EpochOrder, epoch: int = 0, count: int = 2, source: str = "corpus") -> Any:
    asked = Logits(
        articles=ARTICLES,  # type: ignore[arg-type]
        teachers=[teacher()],
        negatives=Negatives(order, count, source),
        epochs=(epoch,),
        dtype="float16",
        compute="fp32",
        settings="",
    )
    return asked.column(asked.teachers[0], epoch).made_from


def test_whatever_changes_the_drawn_negatives_makes_another_column():
    order = EpochOrder([10, 10], "f", 1, 2)
    found = [
        logits(order),
        logits(order, epoch=1),
        logits(order, count=3),
        logits(order, source="window"),
        logits(EpochOrder([10, 10], "f", 2, 2)),
        logits(EpochOrder([10, 10], "f", 1, 1), source="window"),
        logits(EpochOrder([10, 10], "f", 1, 2, np.array([3]))),
    ]
    assert all(one not in found[:number] for number, one in enumerate(found))
    # What a reader of the other column is told.
    assert differing(found[0], found[3]) == {"negatives_from", "window_shards"}
    # Windows play no part where negatives come from the whole corpus.
    assert logits(EpochOrder([10, 10], "f", 1, 1)) == logits(order)


def test_teachers_of_the_other_stage_are_refused():
    with pytest.raises(ModelError, match="max_body_tokens"):
        text_identity(teacher(max_body_tokens=None), ARTICLES, "float16", "fp32")
    with pytest.raises(ModelError, match="does not have a user encoder"):
        news_identity(teacher(kind="news_encoder"), ARTICLES, "float16", "fp32")


# ---- frozen states


def backbone(num_below: int = 1, **changes: Any) -> Backbone:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 3, "vocab_size": 20, "max_position_embeddings": 16}
    torch.manual_seed(0)
    made = Backbone(BertConfig(**(sizes | changes)), relative_position_bias=False)
    made.cut(num_below)
    return made


def frozen(
    made: Backbone | None = None, dtype: str = "float16", compute: str = "fp32", **changes: Any
) -> Any:
    tokens = SimpleNamespace(
        skipped_rows=np.array(changes.get("damaged", []), dtype=np.int64),
        tokenizer_sha256=changes.get("tokenizer", "t"),
    )
    texts: Any = SimpleNamespace(
        tokens=tokens, fields=changes.get("fields", ("title",)), limits=changes.get("limits", (10,))
    )
    return frozen_identity(made or backbone(), texts, dtype, compute)


def test_whatever_changes_frozen_states_makes_another_column():
    found = [
        frozen(),
        frozen(dtype="float32"),
        frozen(compute="bf16"),
        frozen(tokenizer="u"),
        frozen(fields=("abstract",)),
        frozen(limits=(11,)),
        frozen(damaged=[3]),
        frozen(backbone(2)),
        frozen(backbone(hidden_act="relu")),
        frozen(backbone(layer_norm_eps=1e-5)),
    ]
    assert all(one not in found[:number] for number, one in enumerate(found))
    # What a reader of the other column is told.
    assert differing(found[0], found[7]) == {"frozen_layers", "frozen_weights_sha256"}


@pytest.mark.parametrize("layer", [0, 1])
def test_weights_below_the_cut_play_a_part_and_those_above_none(layer: int):
    made = backbone()
    before = frozen(made)
    with torch.no_grad():
        made.language_model.encoder.layer[layer].output.dense.bias[-1] += 1e-6
    assert (frozen(made) == before) == (layer == 1)


def test_what_changes_no_state_below_the_cut_plays_no_part():
    same = backbone(num_hidden_layers=2, hidden_dropout_prob=0.3, initializer_range=0.5)
    same.load_state_dict(backbone().state_dict(), strict=False)
    same.cut(1)
    found, expected = frozen(same), frozen()
    assert found == expected
