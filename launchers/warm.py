"""Imports what steps need, inside the server that they are forked from (:mod:`launchers.child`).

A module that cannot be imported is left out: the step that needs it will say what is wrong.
"""

import contextlib
import importlib

from trainer.environment import prepare

MODULES = (
    "torch",
    "accelerate",
    "tyro",
    "torch.utils.tensorboard",
    "trainer.engine.trainer",
    "trainer.tasks.build",
    "trainer.teacher_server.fill",
    "trainer.teacher_server.outputs",
    "trainer.evaluate.evaluate",
    "trainer.evaluate.encode",
    "trainer.evaluate.scoring",
    "shards.build",
    "shards.tokenize",
)
"""Heavy modules of the steps. Not the command line itself: where it is the main module, Python runs
it again in every child and would warn that it is there already."""

prepare()
for _name in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(_name)
