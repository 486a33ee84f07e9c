"""Import what steps need, inside the server that forks the steps (:mod:`launchers.child`).

A module that cannot be imported is skipped: the step that needs the module reports the error.
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
"""Heavy modules of the steps, without the command line's own: if that is the main module, Python
runs it again in every child and would warn that it is loaded already."""

prepare()
for _name in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(_name)
