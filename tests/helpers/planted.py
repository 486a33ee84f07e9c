"""Model folders that strangers made: with code of their own, or files that never end."""

import json
from pathlib import Path
from typing import Any


def plant(folder: Path, marker: Path, file: str, place: str = "") -> None:
    """Let a file of a folder name code that would write ``marker`` when it is imported.

    Args:
        folder: A model's folder, changed.
        marker: What the code would write.
        file: JSON file that names it; made if it is not there.
        place: Dotted keys of the object inside the file that names it.
    """
    code = f"open({str(marker)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n"
    (folder / "stranger.py").write_text(code)
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    inside: dict[str, Any] = content
    for key in filter(None, place.split(".")):
        inside = inside[key]
    inside["auto_map"] = {
        "AutoConfig": "stranger.Config",
        "AutoModel": "stranger.Model",
        "AutoTokenizer": ["stranger.Model", "stranger.Model"],
    }
    path.write_text(json.dumps(content))
