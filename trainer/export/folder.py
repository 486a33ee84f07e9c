"""An exported model: a folder of Hugging Face's layout that says what texts it was made for.

This project's classes open it; ``AutoModel`` knows only that of a language model
(:mod:`trainer.export.formats` writes other folders).

Beside ``config.json``, ``model.safetensors`` and the tokenizer's files there is ``tnr.json``: what
kind of model it is, its text lengths, the sha256 of its weights and tokenizer, by which columns
know it, and a seal over all of it (:mod:`trainer.export.info`).
"""

import glob
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shards.files import (
    did_you_mean,
    did_you_mean_inside,
    fsync_folder,
    fsync_tree,
    remove,
    sha256_file,
    temporary_name,
    write_json_atomic,
)
from shards.os_errors import naming
from trainer.errors import ColumnError, DataError, ModelError
from trainer.export.info import FORMAT, INFO, WEIGHTS, read_info, sealed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from shards.reader import ShardSet
    from shards.texts import TextView
    from shards.tokens import TokenColumn


class _Facts(dict[str, Any]):
    """Entries of ``tnr.json``; one that is asked for and missing is the file's fault."""

    def __missing__(self, key: str) -> Any:
        raise ModelError(f"{INFO} has no entry {key!r}: it was edited; export the model again")


@dataclass(frozen=True)
class Export:
    """An exported model on disk, not yet in memory."""

    folder: Path
    info: dict[str, Any]
    _damaged: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def weights_sha256(self) -> str:
        """sha256 of the weights file."""
        return str(self.info["weights_sha256"])

    @property
    def is_recommender(self) -> bool:
        """Whether it has a user encoder beside its news encoder."""
        return bool(self.info["kind"] == "recommender")

    @property
    def is_language_model(self) -> bool:
        """Whether it is a backbone with its head, without a news encoder."""
        return bool(self.info["kind"] == "language_model")

    def check_weights(self) -> None:
        """Compare the weights with their sha256.

        Raises:
            ModelError: The weights are not the ones that were exported.
        """
        found = sha256_file(self.folder / WEIGHTS)
        if found != self.weights_sha256:
            raise ModelError(
                f"{self.folder / WEIGHTS} has sha256 {found[:12]}…, but {INFO} says "
                f"{self.weights_sha256[:12]}…: the folder is damaged or was edited; export it again"
            )

    def load_model(self) -> "PreTrainedModel":
        """Load the model: a ``NewsEncoder`` or a ``Recommender``, in eval mode, fp32.

        Raises:
            ModelError: The weights are not the ones that were exported.
        """
        from trainer.models.loading import load_model

        self.check_weights()
        return load_model(self.folder).eval()

    def tokens(self, articles: "ShardSet") -> "TokenColumn":
        """The token column of an article set that was made with this model's tokenizer and stores
        what the model reads.

        Raises:
            ModelError: The set has none of its tokenizer; the message has the command that makes
                one.
            ColumnError: Those of its tokenizer store less than it reads; so has this message.
        """
        from shards.tokens import TokenColumn

        found, too_little = [], None
        for folder in sorted(articles.columns_dir.glob("tokens-*")):
            try:
                column = TokenColumn.open(articles, folder.name)
            except DataError as error:  # unfinished, stale or damaged: another may serve
                found.append(f"{folder.name} ({error})")
                continue
            if column.tokenizer_sha256 != self.info["tokenizer_sha256"]:
                found.append(f"{folder.name} (tokenizer {column.tokenizer_sha256[:12]}…)")
                continue
            problem = next(filter(None, (column.problem(*part) for part in self._parts_read)), None)
            if problem is None:
                return column
            too_little = too_little or problem
        if too_little is not None:
            raise ColumnError(f"{self.folder} does not fit the token column: {too_little}")
        raise ModelError(
            f"{articles.location} has no token column of the tokenizer of {self.folder} "
            f"({self.info['tokenizer_sha256'][:12]}…); found: {', '.join(found) or 'none'}. "
            f"Make it: tnr shards tokenize {articles.location} --tokenizer {self.folder}"
        )

    def damaged_rows(self, articles: "ShardSet") -> list[int]:
        """Rows whose samples were damaged when :meth:`tokens` was made, ascending: their texts are
        empty. None where there is no such column; looked for once."""
        if articles.location not in self._damaged:
            try:
                rows = self.tokens(articles).skipped_rows.tolist()
            except (ColumnError, ModelError):
                rows = []
            self._damaged[articles.location] = rows
        return self._damaged[articles.location]

    @property
    def news_parts(self) -> tuple[tuple[str, int], ...]:
        """Fields of an article that it reads in recommendation, in their order, each with its
        longest length in tokens: the title alone where an older export does not say."""
        said = self.info.get("news_text") or [("title", self.info["max_title_tokens"])]
        return tuple((str(field), int(tokens)) for field, tokens in said)

    @property
    def _parts_read(self) -> list[tuple[str, int]]:
        """Everything that it may be asked to encode."""
        body = self.info.get("max_body_tokens")
        return [*self.news_parts, *([("body", int(body))] if body else [])]

    def news_texts(self, tokens: "TokenColumn") -> "TextView":
        """What this model reads of an article in recommendation.

        Raises:
            ColumnError: The column stores less than the model reads.
        """
        return tokens.view(*self.news_parts)

    def body_texts(self, tokens: "TokenColumn") -> "TextView":
        """The bodies that this model was post-trained on.

        Raises:
            ColumnError: The column stores less than the model reads.
        """
        return tokens.view(("body", self.info["max_body_tokens"]))


def load_export(folder: str | Path) -> Export:
    """Open an exported model with a news encoder without loading it.

    Raises:
        ModelError: The folder is no export, of a newer format, or holds a language model alone.
        DamageError: A file was edited after the export.
    """
    export = open_export(folder)
    if export.is_language_model:
        raise ModelError(
            f"{export.folder} holds a language model without a news encoder: train one from it "
            f"with --model.backbone.name {export.folder}"
        )
    return export


def open_export(folder: str | Path) -> Export:
    """Open an exported model of any kind without loading it; errors as of :func:`load_export`."""
    path = Path(folder)
    if not (path / INFO).is_file():
        if not path.is_dir():
            raise ModelError(
                f"there is no exported model at {path}: no such folder{did_you_mean(path)}"
            )
        places = ("export", "*", "copies/*", "*/export")
        hint = did_you_mean_inside(path, *(f"{place}/{INFO}" for place in places))
        raise ModelError(f"{path} is not an exported model: it has no {INFO}{hint}")
    info = read_info(path)
    if not (path / WEIGHTS).is_file():
        raise ModelError(f"{path} has no {WEIGHTS}; weights are read from safetensors only")
    return Export(path, _Facts(info))


class Exportable(Protocol):
    """A model that can be exported."""

    kind: str
    """What ``tnr.json`` calls it."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write its ``config.json`` and ``model.safetensors`` into a folder that is made."""
        ...


def export_model(
    model: Exportable, folder: Path, tokenizer_dir: Path | None, info: dict[str, Any]
) -> Export:
    """Write a model as an exported folder; the folder appears whole or not at all.

    Args:
        model: With its full weights, such as a ``NewsEncoder`` or a ``Recommender``.
        folder: Where to; an export that stands there is replaced.
        tokenizer_dir: A saved tokenizer to put beside the weights.
        info: Further entries of ``tnr.json``, such as ``tokenizer_sha256`` and text lengths.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    building = temporary_name(folder)
    try:
        with naming(folder):
            model.save_pretrained(building)
        if tokenizer_dir is not None:
            for file in sorted(tokenizer_dir.iterdir()):
                # A served tokenizer's folder may hold anything: nothing of the model's gives way.
                if file.is_file() and not (building / file.name).exists():
                    shutil.copyfile(file, building / file.name)
        described = info | {
            "format": FORMAT,
            "kind": model.kind,
            "weights_sha256": sha256_file(building / WEIGHTS),
        }
        described = sealed(described, building)
        write_json_atomic(building / INFO, described)
        with naming(folder):
            fsync_tree(building)
        _replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Export(folder, described)


def _clear(folder: Path) -> None:
    """Remove what killed exports left; one that was to be replaced comes back to an empty place."""
    name = glob.escape(folder.name)
    for old in folder.parent.glob(f".{name}.old-*"):
        if not folder.exists():
            old.rename(folder)
    for left in (*folder.parent.glob(f".{name}.old-*"), *folder.parent.glob(f".{name}.tmp-*")):
        remove(left)


def _replace(new: Path, folder: Path) -> None:
    """Put a finished folder in its place; a rename over a full folder is refused by the system."""
    old = None
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old-{uuid.uuid4().hex[:8]}")
        folder.rename(old)
    new.rename(folder)
    fsync_folder(folder.parent)
    if old is not None:
        remove(old)
