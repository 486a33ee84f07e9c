"""What can be named as a teacher: exported folders, teacher copies, run folders.

A plain Hugging Face encoder says neither where its texts are cut nor how its states are pooled. It
becomes a teacher once, by :func:`adopt`, and is an exported folder from then on, which students
name like any other.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from trainer.errors import ModelError, UsageError
from trainer.export.folder import INFO, Export, export_model, load_export

_COPIES = "copies"


def open_teachers(names: Sequence[str | Path]) -> list[Export]:
    """Open teachers without loading them.

    Args:
        names: Exported folders (a run's ``export``, a teacher copy), run folders (which stand for
            their export), or a run's ``copies`` folder (which stands for every copy, by step).

    Raises:
        ModelError: One is none of these, or two are the same model.
    """
    opened = [load_export(folder) for name in names for folder in _folders(Path(name))]
    seen: dict[str, Path] = {}
    for teacher in opened:
        if teacher.weights_sha256 in seen:
            raise ModelError(
                f"{seen[teacher.weights_sha256]} and {teacher.folder} have the same weights; name "
                "each teacher once"
            )
        seen[teacher.weights_sha256] = teacher.folder
    return opened


def _folders(path: Path) -> list[Path]:
    if (path / INFO).is_file():
        return [path]
    if (path / "export" / INFO).is_file():
        return [path / "export"]
    if path.name == _COPIES or not (path / _COPIES).is_dir():
        copies = sorted(found.parent for found in path.glob(f"step_*/{INFO}"))
        if copies:
            return copies
    else:
        raise ModelError(
            f"{path} is a run without an export (has it finished?); for its copies, name "
            f"{path / _COPIES}"
        )
    if (path / "config.json").is_file() or not path.exists():
        raise ModelError(
            f"{path} is no exported model: it has no {INFO}. A plain Hugging Face encoder, by "
            f"folder or name, is made one by: tnr teachers adopt {path} --out FOLDER"
        )
    return [path]  # the loader says what is wrong with it


def adopt(
    name: str,
    out: Path,
    *,
    pooling: str = "mean",
    max_title_tokens: int = 24,
    max_body_tokens: int = 512,
) -> Export:
    """Make a stage I teacher of a plain encoder: its vectors are its pooled states.

    The Linear that every news encoder has is the identity, which changes no bit of a finite state.

    Args:
        name: Hugging Face name on this machine, or a folder.
        out: Folder to write; must not exist.
        pooling: ``mean`` or ``cls``.
        max_title_tokens: Longest title that it reads, special tokens included.
        max_body_tokens: Longest body that it reads.

    Raises:
        UsageError: ``out`` exists, or a length is more than the encoder can read.
        ModelError: The encoder cannot be loaded.
        DataError: It has no fast tokenizer.
    """
    import tempfile

    from shards.tokenizer import load_tokenizer, tokenizer_sha256
    from trainer.models.backbone import max_tokens
    from trainer.models.configuration import NewsEncoderConfig
    from trainer.models.loading import load_language_model, load_language_model_config
    from trainer.models.news_encoder import NewsEncoder

    if out.exists():
        raise UsageError(f"{out} exists already; name another folder or remove it")
    config = load_language_model_config(name)
    most = max_tokens(config)
    for option, tokens in (("title", max_title_tokens), ("body", max_body_tokens)):
        if most is not None and tokens > most:
            raise UsageError(
                f"--max-{option}-tokens is {tokens}, but {name} reads at most {most} tokens"
            )
    width = int(config.hidden_size)
    model = NewsEncoder(
        NewsEncoderConfig(backbone=config, pooling=pooling, news_dim=width),
        load_language_model(name, config),
    )
    with torch.no_grad():
        nn.init.eye_(model.dense.weight)
        nn.init.zeros_(model.dense.bias)
    tokenizer = load_tokenizer(name)
    settings = {"pooling": pooling, "pooling_mask": True, "news_dim": width}
    info = {
        "task": "adopted",
        "run": name,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "max_title_tokens": max_title_tokens,
        "max_body_tokens": max_body_tokens,
        "history_length": None,
        "pad_to_max": False,
        "model_settings": settings,
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return export_model(model.eval(), out, Path(folder), info)
