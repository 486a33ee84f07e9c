"""What ``tnr evaluate`` says of an export, without starting a process."""

import json
from pathlib import Path
from typing import Any

from trainer.cli.main import main


def evaluated(export: Path, articles: Path, clicks: Path, *words: str) -> dict[str, Any]:
    """The record of an export, or of a baseline where ``words`` name one; it stays beside it."""
    out = export.with_name(f"{export.name}-evaluation.json")
    command = ["evaluate", str(export)] if "--baseline" not in words else ["evaluate"]
    command += ["--articles", str(articles), "--clicks", str(clicks), "--device", "cpu"]
    assert main([*command, "--speed-seconds", "0", "--out", str(out), *words]) == 0
    return dict(json.loads(out.read_text()))
