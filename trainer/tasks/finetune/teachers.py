"""Outputs of the teachers of stage II."""

from trainer.tasks.finetune.sources import ClickSources
from trainer.tasks.finetune.task import FinetuneDistillConfig
from trainer.tasks.teachers import check_texts, follower_of
from trainer.teacher_server.kinds.clicks import StoredClickSignals
from trainer.teacher_server.signals import ClickSignals


def open_signals(config: FinetuneDistillConfig, sources: ClickSources) -> ClickSignals:
    """Open the outputs of the teachers of stage II.

    Raises:
        ColumnError: A teacher's columns are missing, incomplete, or of other settings; or its texts
            of articles that the run reads are empty.
    """
    teachers, articles, impressions = config.teachers, sources.articles, sources.impressions
    check_texts(teachers.models, sources)
    if teachers.source == "live":
        from trainer.tasks.live import LiveClickSignals

        return LiveClickSignals(articles, impressions, teachers.models)
    follower = follower_of(config, waits_for_all=True)
    return StoredClickSignals(
        articles, impressions, teachers.models, teachers.dtype, teachers.compute, follower
    )
