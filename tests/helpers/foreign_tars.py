"""Tars as other people's tools write them: any members in any order, whole or damaged."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def json_bytes(record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8")


def write_tar(
    path: Path,
    members: Iterable[tuple[str, bytes | str | None]],
    *,
    format: int = tarfile.PAX_FORMAT,
    mtime: float = 0,
) -> Path:
    """Write members (name, data) in their order; ``None`` writes a folder, ``str`` a symlink."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.mtime = mtime  # type: ignore[assignment]
            if data is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def text_members(key: str, title: str, body: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.title.txt", title.encode()), (f"{key}.body.txt", body.encode())]


def json_tars(folder: Path, rows: list[dict], per_tar: int = 4) -> list[Path]:
    """Write rows as ``shard_0000.tar``, ...: one JSON member a sample."""
    return [
        write_tar(
            folder / f"shard_{start // per_tar:04d}.tar",
            [(f"s{start + n}.json", json_bytes(row)) for n, row in enumerate(chunk)],
        )
        for start in range(0, len(rows), per_tar)
        for chunk in [rows[start : start + per_tar]]
    ]


def text_tars(folder: Path, rows: list[dict], per_tar: int = 4) -> list[Path]:
    """Write rows as ``train-00.tar``, ...: title and body as members of their own."""
    return [
        write_tar(
            folder / f"train-{start // per_tar:02d}.tar",
            [
                member
                for n, row in enumerate(rows[start : start + per_tar])
                for member in text_members(f"k{start + n}", row["title"], row["body"])
            ],
        )
        for start in range(0, len(rows), per_tar)
    ]
