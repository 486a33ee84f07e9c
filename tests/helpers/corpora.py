"""Small inputs for the builders of shard sets: files that a newsroom or MIND might hand over."""

import gzip
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_json_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows as JSON lines; ``bytes`` are written as they are; gzipped where the name says."""
    lines = [
        row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode("utf-8")
        for row in rows
    ]
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def articles(count: int, first: int = 0) -> list[dict[str, str]]:
    """Articles with id, title, body and category, each different."""
    return [
        {
            "id": f"N{number}",
            "title": f"Title “{number}” of the day",
            "body": f"Body {number}." + " Words and more words." * (number % 5),
            "category": ("news", "sports", "finance")[number % 3],
        }
        for number in range(first, first + count)
    ]


def news_line(number: int, title: str | None = None, abstract: str = "An abstract.") -> str:
    """One line of MIND's news.tsv."""
    title = f'He said "no" to {number}' if title is None else title
    return f"N{number}\tnews\tworld\t{title}\t{abstract}\thttps://example.org/{number}\t[]\t[]"


def write_mind_folder(
    folder: Path, news: Sequence[str], behaviors: Sequence[str] | None = None
) -> Path:
    """Write a folder with news.tsv and, if given, behaviors.tsv."""
    folder.mkdir(parents=True)
    (folder / "news.tsv").write_text("\n".join(news) + "\n", encoding="utf-8", newline="")
    if behaviors is not None:
        text = "\n".join(behaviors) + "\n"
        (folder / "behaviors.tsv").write_text(text, encoding="utf-8", newline="")
    return folder


def zip_folder(folder: Path, path: Path, prefix: str = "") -> Path:
    """Put the files of a folder into a zip, as MIND's parts are handed out."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return path


def refusals(folder: Path) -> list[tuple[str, int, str]]:
    """Return (source, line, reason) of each row in a set's report."""
    text = (folder / "refused.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()]
    return [(entry["source"], entry["line"], entry["reason"]) for entry in entries]
