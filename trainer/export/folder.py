"""An exported model: a folder in Hugging Face layout with the settings of its texts.

This project's classes open the folder; ``AutoModel`` opens only a language model's
(:mod:`trainer.export.formats` writes other folders).

Next to ``config.json``, ``model.safetensors`` and the tokenizer's files there is ``tnr.json``: the
kind of model, its text lengths, the sha256 of its weights and tokenizer, by which columns identify
it, and a seal over all entries (:mod:`trainer.export.info`).
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
    """Entries of ``tnr.json``; a missing entry raises an error that names the file."""

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
        """Whether the model has a user encoder besides its news encoder."""
        return bool(self.info["kind"] == "recommender")

    @property
    def is_language_model(self) -> bool:
        """Whether the model is a backbone with its head, without a news encoder."""
        return bool(self.info["kind"] == "language_model")

    def check_weights(self) -> None:
        """Compare the weights with their sha256.

        Raises:
            ModelError: The weights are not those that were exported.
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
            ModelError: The weights are not those that were exported.
        """
        from trainer.models.loading import load_model

        self.check_weights()
        return load_model(self.folder).eval()

    def tokens(self, articles: "ShardSet") -> "TokenColumn":
        """Return an article set's token column that matches this model.

        Such a column was made with this model's tokenizer and stores what the model reads.

        Raises:
            ModelError: The set has no column of the tokenizer; the message has the command that
                makes one.
            ColumnError: The columns of the tokenizer store less than the model reads; the message
                has the command, too.
        """
        from shards.tokens import TokenColumn

        found, too_little = [], None
        for folder in sorted(articles.columns_dir.glob("tokens-*")):
            try:
                column = TokenColumn.open(articles, folder.name)
            except DataError as error:  # unfinished, stale or damaged: another column may match
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
            f"({self.info['tokenizer_sha256'][:12]}…); found: {', '.join(found) or 'none'}. Make "
            f"it: tnr shards tokenize {articles.location} --tokenizer {self.folder}"
        )

    def damaged_rows(self, articles: "ShardSet") -> list[int]:
        """Return the rows whose texts are empty in the matching token column.

        Their samples were damaged when the column was made. Ascending; empty without such a column;
        computed once.
        """
        if articles.location not in self._damaged:
            try:
                rows = self.tokens(articles).skipped_rows.tolist()
            except (ColumnError, ModelError):
                rows = []
            self._damaged[articles.location] = rows
        return self._damaged[articles.location]

    @property
    def news_parts(self) -> tuple[tuple[str, int], ...]:
        """Fields of an article that the model reads in recommendation, with their longest lengths.

        In the model's order, lengths in tokens; the title alone if an older export does not record
        them.
        """
        said = self.info.get("news_text") or [("title", self.info["max_title_tokens"])]
        return tuple((str(field), int(tokens)) for field, tokens in said)

    @property
    def _parts_read(self) -> list[tuple[str, int]]:
        """All fields that the model may have to encode."""
        body = self.info.get("max_body_tokens")
        return [*self.news_parts, *([("body", int(body))] if body else [])]

    def news_texts(self, tokens: "TokenColumn") -> "TextView":
        """Return a view of the texts that this model reads of an article in recommendation.

        Raises:
            ColumnError: The column stores less than the model reads.
        """
        return tokens.view(*self.news_parts)

    def body_texts(self, tokens: "TokenColumn") -> "TextView":
        """Return a view of the bodies on which this model was post-trained.

        Raises:
            ColumnError: The column stores less than the model reads.
        """
        return tokens.view(("body", self.info["max_body_tokens"]))


def load_export(folder: str | Path) -> Export:
    """Open an exported model with a news encoder without loading it.

    Raises:
        ModelError: The folder is not an export, has a newer format, or holds only a language model.
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
    """Open an exported model of any kind without loading it.

    Errors are those of :func:`load_export`.
    """
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
    """Name of the kind of model in ``tnr.json``."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write its ``config.json`` and ``model.safetensors`` to a folder that is created."""
        ...


def export_model(
    model: Exportable, folder: Path, tokenizer_dir: Path | None, info: dict[str, Any]
) -> Export:
    """Write a model as an exported folder, which appears whole or not at all.

    Args:
        model: Model with its full weights, such as a ``NewsEncoder`` or a ``Recommender``.
        folder: Folder to write; an existing export is replaced.
        tokenizer_dir: A saved tokenizer to copy next to the weights.
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
                # A tokenizer's folder may hold any files, but none may replace a file of the model.
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
    """Remove leftovers of killed exports, and restore an export whose replacement was killed."""
    name = glob.escape(folder.name)
    for old in folder.parent.glob(f".{name}.old-*"):
        if not folder.exists():
            old.rename(folder)
    for left in (*folder.parent.glob(f".{name}.old-*"), *folder.parent.glob(f".{name}.tmp-*")):
        remove(left)


def _replace(new: Path, folder: Path) -> None:
    """Move a finished folder to its place; the system refuses to replace a full folder."""
    old = None
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old-{uuid.uuid4().hex[:8]}")
        folder.rename(old)
    new.rename(folder)
    fsync_folder(folder.parent)
    if old is not None:
        remove(old)
