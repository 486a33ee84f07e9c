"""Negatives of post-training, and the teachers' outputs for them."""

import shlex
from collections.abc import Sequence

from shards.negatives import Negatives
from trainer.config.flat import flatten, to_dict
from trainer.engine.schedule import epochs_read
from trainer.export.folder import load_export
from trainer.tasks.post_train.task import PairConfig, PostTrainDistillConfig
from trainer.tasks.sources import Sources, article_order
from trainer.tasks.teachers import check_texts, follower_of
from trainer.teacher_server.kinds.logits import Logits, StoredLogits
from trainer.teacher_server.kinds.text import StoredTextSignals
from trainer.teacher_server.signals import TextSignals


def article_negatives(config: PairConfig, sources: Sources) -> Negatives:
    """Make the order of a run's articles, and their negatives.

    Raises:
        DataError: There are no articles, or a window may be too small for the negatives.
    """
    data = config.data
    order = article_order(config, sources)
    return Negatives(
        order, data.num_negatives, data.negatives_from, is_static=data.static_negatives
    )


def open_signals(config: PostTrainDistillConfig, sources: Sources) -> TextSignals:
    """Open the outputs of the teachers of stage I.

    Raises:
        ColumnError: A teacher's columns are missing, incomplete, or of other settings; or its texts
            of articles that the run reads are empty.
    """
    teachers, articles = config.teachers, sources.articles
    check_texts(teachers.models, sources)
    if teachers.source == "live":
        from trainer.tasks.live import LiveTextSignals

        return LiveTextSignals(articles, teachers.models)
    is_windowed = config.data.negatives_from == "window" or not config.reads_vectors
    follower = follower_of(config, waits_for_all=not is_windowed)
    if teachers.logits == "stored":
        logits = stored_logits(config, sources)
        return StoredLogits(logits, with_vectors=config.reads_vectors, follower=follower)
    return StoredTextSignals(articles, teachers.models, teachers.dtype, teachers.compute, follower)


def stored_logits(
    config: PostTrainDistillConfig, sources: Sources, epochs: Sequence[int] | None = None
) -> Logits:
    """Describe the stored logits that a run of stage I reads (``teachers.logits``).

    Args:
        config: The run.
        sources: Data of the run.
        epochs: Epochs of the logits; None means all that the run reads. Negatives that are drawn
            once for all epochs (``data.static_negatives``) are those of epoch 0.

    Raises:
        ModelError: A teacher is not an export.
        DataError: A window may be too small for the negatives.
    """
    articles, teachers = sources.articles, config.teachers
    negatives = article_negatives(config, sources)
    if epochs is None:
        epochs = range(epochs_read(config.run, negatives.order.num_units))
    given, defaults = (flatten(to_dict(c)) for c in (config, PostTrainDistillConfig()))
    words: list[str] = [config.task]
    for key, value in given.items():
        # The lengths of texts do not matter here, but would have to fit the backbone.
        decides = key.startswith(("data.", "teachers.", "run.seed")) and "max_" not in key
        if decides and value != defaults[key]:
            words += [f"--{key}", *map(str, value if isinstance(value, tuple) else [value])]
    return Logits(
        articles=articles,
        teachers=[load_export(model) for model in teachers.models],
        negatives=negatives,
        epochs=(0,) if negatives.is_static else tuple(epochs),
        dtype=teachers.dtype,
        compute=teachers.compute,
        settings=shlex.join(words),
    )
