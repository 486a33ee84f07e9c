"""What can be named as a teacher: exported folders, teacher copies, run folders.

A plain Hugging Face encoder does not specify where its texts are cut or how its states are pooled.
:func:`adopt` makes it a teacher: an exported folder, which students name like any other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shards.files import did_you_mean
from trainer.errors import ModelError, UsageError
from trainer.export.folder import INFO, Export, export_model, load_export

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from trainer.models.news_encoder import NewsEncoder

_COPIES = "copies"


def open_teachers(names: Sequence[str | Path]) -> list[Export]:
    """Open teachers without loading them.

    Args:
        names: Exported folders (a run's ``export``, a teacher copy), run folders (which mean their
            export), or a run's ``copies`` folder (which means every copy, by step).

    Raises:
        ModelError: A name is none of these, or two names mean the same model.
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
            f"{path} is a run without an export (has it finished?); to use its copies, name "
            f"{path / _COPIES}"
        )
    if (path / "config.json").is_file() or not path.exists():
        if path.exists():
            what = f"{path} is not an exported model: it has no {INFO}"
        else:
            what = f"there is no exported model at {path}: no such folder{did_you_mean(path)}"
        raise ModelError(
            f"{what}{'' if what.endswith('?') else '.'} To make a teacher from a plain Hugging "
            f"Face encoder (folder or name): tnr teachers adopt {path} --out FOLDER"
        )
    return [path]  # the loader reports what is wrong


def adopt(
    name: str,
    out: Path,
    *,
    pooling: str = "mean",
    news_text: Sequence[str] = ("title",),
    max_title_tokens: int = 24,
    max_abstract_tokens: int = 64,
    max_body_tokens: int = 512,
    max_category_tokens: int = 10,
) -> Export:
    """Make a stage I teacher of a plain encoder: its vectors are its pooled states.

    The Linear of the news encoder is the identity, which does not change a bit of a finite state.

    Args:
        name: A folder, or a Hugging Face name in the local cache.
        out: Folder to write; must not exist.
        pooling: ``mean`` or ``cls``.
        news_text: Fields that the teacher reads, joined in this order, where its student reads
            titles.
        max_title_tokens: Longest title that it reads, special tokens included.
        max_abstract_tokens: Longest abstract, if ``news_text`` names it.
        max_body_tokens: Longest body that it reads.
        max_category_tokens: Longest category, if ``news_text`` names it.

    Raises:
        UsageError: ``out`` exists, a field is unknown, or texts are longer than the encoder can
            read.
        ModelError: The encoder cannot be loaded.
        DataError: The encoder does not exist, or has no fast tokenizer.
    """
    import tempfile

    from shards.pretrained import find_folder
    from shards.text_fields import TEXT_FIELDS, check_fields
    from shards.tokenizer import load_tokenizer, tokenizer_facts
    from trainer.models.loading import load_language_model_config

    if out.exists():
        raise UsageError(f"{out} exists already; name another folder or remove it")
    check_fields(news_text, "--news-text")
    asked = (max_title_tokens, max_abstract_tokens, max_body_tokens, max_category_tokens)
    limits = dict(zip(TEXT_FIELDS, asked, strict=True))
    parts = [(field, limits[field]) for field in news_text]
    find_folder(name)
    config = load_language_model_config(name)
    tokenizer = load_tokenizer(name)
    facts = tokenizer_facts(tokenizer)
    model = _pooled_states(name, config, pooling)
    for read in (parts, [("body", max_body_tokens)]):
        _check_readable(read, model.backbone.max_tokens, len(facts.prefix_ids), name)
    info = {
        "task": "adopted",
        "run": name,
        "tokenizer_sha256": facts.sha256,
        "news_text": [list(part) for part in parts],
        "max_title_tokens": max_title_tokens,
        "max_body_tokens": max_body_tokens,
        "history_length": None,
        "pad_to_max": False,
        "model_settings": {
            "pooling": pooling,
            "pooling_mask": True,
            "news_dim": model.config.news_dim,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return export_model(model, out, Path(folder), info)


def _pooled_states(name: str, config: "PreTrainedConfig", pooling: str) -> "NewsEncoder":
    """Return a news encoder whose Linear is the identity."""
    import torch
    from torch import nn

    from trainer.models.configuration import NewsEncoderConfig
    from trainer.models.loading import load_language_model
    from trainer.models.news_encoder import NewsEncoder
    from trainer.models.probe import check_padding

    model = NewsEncoder(
        NewsEncoderConfig(backbone=config, pooling=pooling, news_dim=int(config.hidden_size)),
        load_language_model(name, config),
    )
    check_padding(model.backbone, name)
    with torch.no_grad():
        nn.init.eye_(model.dense.weight)
        nn.init.zeros_(model.dense.bias)
    return model.eval()


def _check_readable(
    parts: Sequence[tuple[str, int]], most: int | None, num_first: int, name: str
) -> None:
    """Refuse lengths whose joined texts the encoder cannot read."""
    tokens = sum(limit for _, limit in parts) - num_first * (len(parts) - 1)
    if most is not None and tokens > most:
        options = " and ".join(f"--max-{field}-tokens {limit}" for field, limit in parts)
        verb = "makes" if len(parts) == 1 else "make"
        raise UsageError(
            f"{options} {verb} texts of up to {tokens} tokens, but {name} reads at most {most}"
        )
