"""What the tasks with teachers ask of their columns, whatever these lie over."""

from collections.abc import Sequence

import numpy as np

from trainer.config.distill import DistillConfig
from trainer.errors import ColumnError
from trainer.export.folder import load_export
from trainer.tasks.sources import Sources
from trainer.teacher_server.follow import Follower

_LONGEST_WAIT = 0.9
"""Share of ``run.hang_timeout_s`` that a rank waits for a teacher's cell at most: then it is the
wait that ends the run, with its reason, and not the watch over ranks that hang."""


def check_texts(models: Sequence[str], sources: Sources) -> None:
    """Refuse teachers whose tokens were made while articles were damaged that the run reads.

    A teacher with a tokenizer of its own has its own token column; the articles may have been
    mended since.

    Raises:
        ColumnError: Naming the first such teacher, and the remedy.
    """
    for teacher in map(load_export, models):
        damaged = teacher.damaged_rows(sources.articles)
        empty = np.setdiff1d(damaged, sources.tokens.skipped_rows)
        if len(empty):
            raise ColumnError(
                f"the tokens of teacher {teacher.folder} were made while {len(empty)} articles "
                f"were damaged that this run reads (row {empty[0]} first): tokenize "
                f"{sources.articles.location} again with its tokenizer, then fill its columns"
            )


def follower_of(config: DistillConfig, *, waits_for_all: bool) -> Follower | None:
    """Make what waits for cells that are being filled, where a run asks for it.

    Args:
        config: The run.
        waits_for_all: Whether a batch may name any article.
    """
    if not config.teachers.follow:
        return None
    follower = Follower(config.teachers.follow_timeout_s, _LONGEST_WAIT * config.run.hang_timeout_s)
    if waits_for_all:
        follower.note(
            "teachers.follow: a batch draws articles from the whole corpus, so the first steps "
            "wait for almost all cells of articles; only stage I with data.negatives_from window "
            "trains on what is there"
        )
    return follower
