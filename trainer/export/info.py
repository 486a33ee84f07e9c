"""``tnr.json`` of an exported model: its required entries, and the seal that detects edits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from shards.errors import DamageError
from shards.files import fingerprint, read_json, sha256_file
from shards.manifest import Sha256
from trainer.config.clicks import HistoryPadding, TextField
from trainer.config.parts import make_part
from trainer.errors import ConfigError, ModelError
from trainer.models.poolings import POOLINGS
from trainer.models.user_encoders import USER_ENCODERS

FORMAT = 1
INFO = "tnr.json"
WEIGHTS = "model.safetensors"

_Tokens = Annotated[int, Meta(ge=1, le=1 << 24)]
_Width = Annotated[int, Meta(ge=1, le=1 << 20)]
_Clicks = Annotated[int, Meta(ge=1, lt=1 << 31)]


@dataclass(frozen=True)
class Settings:
    """Entries of ``model_settings`` that every export has.

    Parts of the model add their own settings. A news encoder has no user encoder.
    """

    news_dim: _Width
    pooling: str = "attention"
    pooling_mask: bool = True
    query_dim: _Width | None = None
    user_encoder: str | None = None
    history_padding: HistoryPadding | None = None


@dataclass(frozen=True)
class Info:
    """Required entries of ``tnr.json``; entries with a default are missing in some exports."""

    format: int
    kind: Literal["news_encoder", "recommender", "language_model"]
    weights_sha256: Sha256
    tokenizer_sha256: Sha256 = ""
    news_text: list[tuple[TextField, _Tokens]] | None = None
    max_title_tokens: _Tokens = 0
    max_body_tokens: _Tokens | None = None
    history_length: _Clicks | None = None
    pad_to_max: bool = False
    model_settings: Settings | None = None
    files: dict[str, Sha256] | None = None
    """sha256 of every other exported file; older exports have neither this nor a seal."""
    fingerprint: Sha256 | None = None
    """Hash of all other entries."""


def sealed(info: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Add hashes to the entries of ``tnr.json`` that detect edits of entries and files.

    Args:
        info: The entries; hashes from an earlier seal are replaced.
        folder: The export with all its files except ``tnr.json``. The weights have their own entry.

    Raises:
        DataError: A file is unreadable.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    files = {name: sha256_file(folder / name) for name in names if name not in (INFO, WEIGHTS)}
    entries = {key: value for key, value in info.items() if key != "fingerprint"}
    entries["files"] = files
    return entries | {"fingerprint": fingerprint(entries)}


def read_info(folder: Path) -> dict[str, Any]:
    """Read ``tnr.json`` of an exported model.

    Raises:
        ModelError: The file has another format.
        DamageError: This file, or a file other than the weights, differs from the export.
        DataError: A file is unreadable.
    """
    path = folder / INFO
    entries = read_json(path, dict[str, Any])
    found = entries.get("format")
    if isinstance(found, int) and found != FORMAT:
        raise ModelError(f"{path}: format {found!r}, expected {FORMAT}")
    info = read_json(path, Info)
    if info.kind == "recommender" and entries.get("history_length", 1) is None:
        raise DamageError(f"{path} is damaged or was edited: history_length is null")
    if info.model_settings is not None:
        _check_parts(path, info.model_settings, entries["model_settings"])
    if info.fingerprint is not None:
        _check_seal(folder, entries)
    return entries


def _check_parts(path: Path, known: Settings, settings: dict[str, Any]) -> None:
    """Refuse a pooling or a user encoder that this version cannot make."""
    for registry, choice in ((POOLINGS, "pooling"), (USER_ENCODERS, "user_encoder")):
        name = getattr(known, choice)
        try:
            if name is not None:
                make_part(registry, name, settings)
        except ConfigError as error:
            raise DamageError(f"{path} is damaged or was edited: {choice}: {error}") from error


def _check_seal(folder: Path, entries: dict[str, Any]) -> None:
    others = {key: value for key, value in entries.items() if key != "fingerprint"}
    if fingerprint(others) != entries["fingerprint"]:
        raise DamageError(f"{folder / INFO} was edited after the export: export the model again")
    for name, sha256 in (entries.get("files") or {}).items():
        file = folder / name
        what = "was edited after" if file.is_file() else "is missing, which was in"
        if not file.is_file() or sha256_file(file) != sha256:
            raise DamageError(f"{file} {what} the export: export the model again")
