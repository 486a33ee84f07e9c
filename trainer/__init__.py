"""Tiny-NewsRec's trainer: models, losses, tasks, teacher server, engine and evaluation."""
