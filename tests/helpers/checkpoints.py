"""Small checkpoints for tests of how they are found and read."""

import json
from collections.abc import Callable
from pathlib import Path

from shards.files import sha256_file
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore


def make_store(folder: Path, warn: Callable[[str], None], *steps: int) -> CheckpointStore:
    """A folder with a complete checkpoint for each of these steps."""
    for step in steps:
        home = folder / f"step_{step:08d}"
        home.mkdir(parents=True)
        (home / "model").write_text("weights")
        (home / "state.json").write_text(json.dumps({"format": 1, "step": step}))
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(home.iterdir())
        }
        (home / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
        (folder / "latest").write_text(home.name + "\n")
    return CheckpointStore(folder, Retention(newest=3), warn)
