"""Tiny-NewsRec's trainer: models, losses, tasks, teacher server, engine and evaluation."""

from shards.column_kinds import register
from trainer import frozen
from trainer.teacher_server import kinds

register(kinds.find)
register(frozen.find)
