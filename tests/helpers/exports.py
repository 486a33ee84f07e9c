"""Exports that say other things than the ones that a test made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.files import read_json, write_json_atomic
from trainer.export.info import INFO, sealed


def rewrite(folder: str | Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the entries of an export's ``tnr.json`` as if it had been exported with them."""
    info = read_json(Path(folder) / INFO, dict[str, Any])
    change(info)
    write_json_atomic(Path(folder) / INFO, sealed(info, Path(folder)))
