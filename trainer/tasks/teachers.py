"""Checks of teachers' columns that all tasks with teachers share."""

from collections.abc import Sequence

import numpy as np

from trainer.config.distill import DistillConfig
from trainer.errors import ColumnError
from trainer.export.folder import load_export
from trainer.tasks.sources import Sources
from trainer.teacher_server.follow import Follower

_LONGEST_WAIT = 0.9
"""Largest share of ``run.hang_timeout_s`` that a rank waits for a teacher's cell, so that the wait
ends the run, with its reason, before the watchdog does."""


def check_texts(models: Sequence[str], sources: Sources) -> None:
    """Refuse teachers whose tokens miss articles that the run reads.

    A teacher with its own tokenizer has its own token column. Articles that were damaged when it
    was made may have been repaired since.

    Raises:
        ColumnError: A teacher's tokens miss articles; names the first such teacher and the remedy.
    """
    for teacher in map(load_export, models):
        damaged = teacher.damaged_rows(sources.articles)
        empty = np.setdiff1d(damaged, sources.tokens.skipped_rows)
        if len(empty):
            raise ColumnError(
                f"the tokens of teacher {teacher.folder} were made while {len(empty)} articles "
                f"that this run reads were damaged (row {empty[0]} first): tokenize "
                f"{sources.articles.location} again with its tokenizer, then fill its columns"
            )


def follower_of(config: DistillConfig, *, waits_for_all: bool) -> Follower | None:
    """Make an object that waits for cells still being filled, if the run wants one.

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
            "can train on the cells filled so far"
        )
    return follower
