"""Fill token columns: ids of articles' texts, made once for all runs.

The default fields are title and body (:mod:`shards.text_fields`).

Ids are stored without special tokens and cut to the longest text that runs may request. Most of a
long body lies behind the cut, and tokenizers truncate only after they have tokenized everything.
The text itself is therefore cut first, at a space before which the tokenizer provably gives the
same ids (:func:`cuts_at_spaces`), and again further on if the ids were too few. Special tokens
inside a text ("[SEP]") are tokenized as ordinary text.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shards.column_extras import keep_tokenizer
from shards.column_info import TOKENIZER_FOLDER, TOKENS
from shards.columns import ColumnReader, ColumnWriter
from shards.damage import Skip, SkipBudget
from shards.errors import ColumnError, DamageError, DataError, StoppedError, UsageError, first_line
from shards.files import read_json
from shards.pool import Workers
from shards.pretrained import panics_as_errors
from shards.ragged import join
from shards.reader import ShardSet
from shards.stopping import Pace, Stopping, TaskStopping, stop_on_sigterm
from shards.text_fields import (
    DEFAULT_FIELDS,
    DEFAULT_TOKENS,
    TEXT_FIELDS,
    check_fields,
    field_text,
    in_order,
)
from shards.tokenizer import TokenizerFacts, load_tokenizer, tokenizer_facts

SKIPPED = "skipped"
"""Tensor uint8[rows], only in cells with damaged samples: 1 for each skipped sample."""
_FORMAT = 1
_BATCH = 256
_CHARS_PER_TOKEN = 6  # a generous first guess for news: a cut that is too short is repeated
_MIN_CHARS = 64

_LOCAL_NORMALIZERS = frozenset(
    ["BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend",
     "Strip", "StripAccents"]
)  # fmt: skip
_SPACE_SPLITTERS = frozenset(["BertPreTokenizer", "Whitespace", "WhitespaceSplit"])
_OTHER_SPLITTERS = frozenset(["Digits", "Punctuation"])


def _local_normalizer(node: dict[str, Any] | None) -> bool:
    """Tell whether the normalised text before a space never depends on the text after it."""
    if node is None or node["type"] in _LOCAL_NORMALIZERS:
        return True
    if node["type"] == "Sequence":
        return all(_local_normalizer(child) for child in node["normalizers"])
    if node["type"] == "Replace":
        pattern = node["pattern"]
        return pattern.get("Regex") == " {2,}" or not any(
            char.isspace() for char in pattern.get("String", " ")
        )
    return False


def _splits_at_spaces(node: dict[str, Any] | None) -> tuple[bool, bool]:
    """Tell (whether no operation crosses a space, whether words are separated at spaces)."""
    if node is None:
        return True, False
    kind = node["type"]
    if kind == "Sequence":
        parts = [_splits_at_spaces(child) for child in node["pretokenizers"]]
        return all(known for known, _ in parts), any(splits for _, splits in parts)
    if kind == "ByteLevel":
        return True, bool(node.get("use_regex", True))
    if kind == "Metaspace":
        return True, bool(node.get("split", True))
    return kind in _SPACE_SPLITTERS | _OTHER_SPLITTERS, kind in _SPACE_SPLITTERS


def cuts_at_spaces(backend: str) -> bool:
    """Tell whether a text cut before a space keeps the whole text's first ids.

    True if the normaliser works locally, the pre-tokenizer separates words at spaces, and the model
    sees one word at a time without randomness. Anything unknown gives False: then whole texts are
    tokenized.

    Args:
        backend: JSON of the fast tokenizer.
    """
    values = json.loads(backend)
    known, splits = _splits_at_spaces(values["pre_tokenizer"])
    model = values["model"]
    added_over_space = any(
        not token["special"] and any(char.isspace() for char in token["content"])
        for token in values["added_tokens"]
    )
    return (
        known
        and splits
        and _local_normalizer(values["normalizer"])
        and model["type"] in ("WordPiece", "Unigram", "BPE", "WordLevel")
        and not model.get("dropout")
        and not added_over_space
    )


def safe_cut(text: str, chars: int) -> str:
    """Return the longest start of ``text``, up to ``chars`` characters, that ends before a space.

    Each neighbour of that space is a letter, a digit or visible ASCII, so that no combining mark,
    no invisible character and no run of spaces straddles the cut. Without such a space, return the
    whole text.
    """
    if len(text) <= chars:
        return text
    place = text.rfind(" ", 1, chars + 1)
    while place > 0:
        before, after = text[place - 1], text[place + 1 : place + 2]
        if _is_plain(before) and _is_plain(after):
            return text[:place]
        place = text.rfind(" ", 1, place)
    return text


def _is_plain(char: str) -> bool:
    return char.isalnum() or "!" <= char <= "~"


class TextEncoder:
    """Encodes texts to ids without special tokens, up to the first ``limit`` ids of each.

    Args:
        backend: JSON of the fast tokenizer.
    """

    def __init__(self, backend: str) -> None:
        """Make the tokenizer and determine whether texts may be cut first."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(backend)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.cuts = cuts_at_spaces(backend)

    def encode(self, texts: Iterable[str], limit: int) -> list[list[int]]:
        """Return the first ``limit`` ids of each text, equal to those of the whole text.

        Raises:
            DataError: A word has no id, and the tokenizer has no unknown token.
        """
        texts = list(texts)
        out: list[list[int]] = [[] for _ in texts]
        waiting = list(range(len(texts)))
        chars = max(_MIN_CHARS, limit * _CHARS_PER_TOKEN)
        while waiting:
            cut = [safe_cut(texts[i], chars) if self.cuts else texts[i] for i in waiting]
            try:
                with panics_as_errors():
                    encoded = self._tokenizer.encode_batch_fast(cut, add_special_tokens=False)
            except Exception as error:  # the tokenizers package raises no other type
                raise DataError(
                    f"the tokenizer cannot encode every text: {first_line(error)}; take a tokenizer"
                    " with an unknown token, or one whose vocabulary covers the texts"
                ) from error
            again = []
            for i, part, encoding in zip(waiting, cut, encoded, strict=True):
                ids = encoding.ids
                if len(ids) < limit and len(part) < len(texts[i]):
                    again.append(i)
                else:
                    out[i] = ids[:limit]
            waiting = again
            chars *= 2
        return out


def made_from(facts: TokenizerFacts, limits: Mapping[str, int]) -> dict[str, Any]:
    """Describe what determines a token column's ids (the column adds the shard set).

    Args:
        facts: facts about the tokenizer.
        limits: fields in order, each with its length limit, including special tokens.
    """
    return {
        "format": _FORMAT,
        "tokenizer_sha256": facts.sha256,
        **{f"{field}_tokens": tokens for field, tokens in limits.items()},
        "fields": list(limits),
        "prefix_ids": list(facts.prefix_ids),
        "suffix_ids": list(facts.suffix_ids),
        "pad_id": facts.pad_id,
        "vocab_size": facts.vocab_size,
    }


def tokenize_set(
    shard_set: ShardSet,
    tokenizer: str | os.PathLike[str],
    *,
    fields: Sequence[str] = DEFAULT_FIELDS,
    title_tokens: int = DEFAULT_TOKENS["title"],
    abstract_tokens: int = DEFAULT_TOKENS["abstract"],
    body_tokens: int = DEFAULT_TOKENS["body"],
    category_tokens: int = DEFAULT_TOKENS["category"],
    processes: int = 1,
    progress: bool = False,
    skip_damaged: int = 0,
) -> ColumnReader:
    """Fill the ``tokens`` column of an article set; skip committed cells.

    The column has one ragged tensor per field, named after the field: ids without special tokens
    (uint16 if the vocabulary allows, else uint32). With the special tokens a text has at most
    ``title_tokens``, ``body_tokens`` and so on. The column's folder also holds the tokenizer.

    Skipped damaged samples get empty texts. They are marked in their cell, named on standard error
    and listed in ``skipped.jsonl`` in the column's folder. Each run fills cells with such samples
    again, so a repaired shard repairs them.

    Args:
        shard_set: a set of articles.
        tokenizer: folder or name of a fast Hugging Face tokenizer.
        fields: fields to store, from :data:`shards.text_fields.TEXT_FIELDS` in any order.
        title_tokens: length limit of titles, including special tokens.
        abstract_tokens: length limit of abstracts, if ``fields`` names them.
        body_tokens: length limit of bodies, if ``fields`` names them.
        category_tokens: length limit of categories, if ``fields`` names them.
        processes: number of processes, each with one shard; one process already uses all cores.
        progress: show rate and time left on standard error.
        skip_damaged: number of damaged samples that may be skipped; 0 stops at the first.

    Returns:
        The column; :class:`shards.tokens.TokenColumn` makes batches from it.

    Raises:
        DataError: the set does not hold articles, or the tokenizer is unusable.
        UsageError: a field is unknown, or a length leaves no room beside the special tokens.
        ColumnError: the column cannot be written.
        DamageError: more samples are damaged than may be skipped.
    """
    budget = SkipBudget(skip_damaged)
    if shard_set.kind != "articles":
        raise DataError(f"{shard_set.path} holds {shard_set.kind}; articles have texts to tokenize")
    check_fields(fields, "--fields")
    asked = (title_tokens, abstract_tokens, body_tokens, category_tokens)
    by_field = dict(zip(TEXT_FIELDS, asked, strict=True))
    limits = {field: by_field[field] for field in in_order(fields)}
    loaded = load_tokenizer(tokenizer)
    facts = tokenizer_facts(loaded)
    rooms = _rooms(limits, len(facts.prefix_ids) + len(facts.suffix_ids))
    if processes < 1:
        raise UsageError(f"--processes is {processes}, expected at least 1")
    source = made_from(facts, limits)
    writer = ColumnWriter(shard_set, TOKENS, source)
    keep_tokenizer(loaded, facts.sha256, writer.folder)
    job = _Job(writer, facts.backend, rooms, _id_dtype(facts.vocab_size))
    open_shards = sorted({*writer.missing(), *writer.committed_with(SKIPPED)})
    try:
        _fill(job, open_shards, min(processes, max(1, len(open_shards))), progress, budget)
    finally:
        budget.write_report(writer.folder)
        writer.clear_leftovers()
    return ColumnReader.open(shard_set, TOKENS, source)


def _rooms(limits: Mapping[str, int], special: int) -> dict[str, int]:
    """Return the most ids of each field beside the special tokens; refuse lengths without room."""
    for field, tokens in limits.items():
        if tokens <= special:
            raise UsageError(
                f"--{field}-tokens is {tokens}; the tokenizer adds {special} special tokens, "
                f"so it must be at least {special + 1}"
            )
    return {field: tokens - special for field, tokens in limits.items()}


def _id_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class _Job:
    """What a process needs to fill a cell."""

    def __init__(
        self, writer: ColumnWriter, backend: str, rooms: Mapping[str, int], dtype: np.dtype
    ) -> None:
        """Keep the parts; ``rooms`` is the most ids of each field, without special tokens."""
        self.writer = writer
        self.backend: str | None = backend
        self.rooms = dict(rooms)
        self.dtype = dtype
        self._encoder: TextEncoder | None = None

    def run(self, shard: int, budget: SkipBudget, stopping: Stopping) -> Iterator[int]:
        """Fill one cell; yield the number of articles tokenized in each step."""
        stopping.check()
        pace = Pace(self.writer.shard_set.shards[shard].samples)
        if self._encoder is None:
            self._encoder = TextEncoder(self.backend or _saved_backend(self.writer.folder))
        rows: dict[str, list[list[int]]] = {field: [] for field in self.rooms}
        stream = budget.samples(self.writer.shard_set, shard)
        skipped: list[bool] = []
        while batch := list(islice(stream, _BATCH)):
            samples = [sample or {} for _, sample in batch]
            skipped += [sample is None for _, sample in batch]
            for field, room in self.rooms.items():
                texts = (field_text(sample, field) for sample in samples)
                rows[field] += self._encoder.encode(texts, room)
            pace.add(len(samples))
            stopping.check(pace.left_s)
            yield len(samples)
        tensors = {}
        for field, ids in rows.items():
            values, offsets = join(ids, self.dtype)
            tensors[f"{field}.values"] = values
            tensors[f"{field}.offsets"] = offsets
        if any(skipped):
            tensors[SKIPPED] = np.array(skipped, dtype=np.uint8)
        # Committed cells that are filled again had skipped samples; this is their current state.
        self.writer.write(shard, tensors, replace=self.writer.is_committed(shard))

    def __getstate__(self) -> dict[str, Any]:
        # Smaller than a pipe's buffer: otherwise a process that is killed before it has read the
        # rest would leave its parent waiting for ever (CPython's popen_spawn_posix).
        return {**self.__dict__, "_encoder": None, "backend": None}


def _saved_backend(folder: Path) -> str:
    """Read the JSON of the fast tokenizer that was saved in a column's folder."""
    values = read_json(folder / TOKENIZER_FOLDER / "tokenizer.json")
    return json.dumps(values | {"truncation": None, "padding": None})


# State of this worker process.
_job: _Job | None = None
_stopping: TaskStopping | None = None


def _start_worker(job: _Job) -> None:
    global _job, _stopping
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _job, _stopping = job, TaskStopping()


def _run_shard(shard: int, allowed: int) -> tuple[int, list[Skip], DamageError | None]:
    if _job is None or _stopping is None:
        raise RuntimeError("the worker was not started by _start_worker")
    budget = SkipBudget(allowed, say=False)
    with _stopping.task():
        try:
            return sum(_job.run(shard, budget, _stopping)), budget.skipped, None
        except DamageError as error:
            return 0, budget.skipped, error


def _fill(
    job: _Job, missing: list[int], processes: int, progress: bool, budget: SkipBudget
) -> None:
    """Fill the missing cells, here or in several processes.

    Raises:
        StoppedError: SIGTERM came; cells that were nearly done are finished.
    """
    shards = job.writer.shard_set.manifest.shards
    with (
        stop_on_sigterm() as stopping,
        _shown(sum(shards[s].samples for s in missing), progress) as update,
    ):
        try:
            if processes == 1:
                for shard in missing:
                    for count in job.run(shard, budget, stopping):
                        update(count)
                return
            with Workers(processes, partial(_start_worker, job)) as workers:
                results = workers.map(partial(_run_shard, allowed=budget.allowed), missing)
                for count, skips, error in results:
                    budget.add(skips, error)
                    update(count)
                    stopping.check()
        except (StoppedError, BrokenProcessPool) as error:
            if stopping.is_asked or isinstance(error, StoppedError):
                left = len(job.writer.missing())
                if not left:
                    return
                raise StoppedError(
                    f"stopped by SIGTERM: {left} of {len(shards)} cells are left; committed cells"
                    " are kept; run the same command again to continue"
                ) from error
            raise ColumnError(
                "a tokenizing process was killed (out of memory?); run the same command again with "
                f"fewer --processes than {processes}: finished shards are kept"
            ) from error


@contextmanager
def _shown(total: int, progress: bool) -> Iterator[Any]:
    if not progress:
        yield lambda count: None
        return
    from shards.progress import Progress

    with Progress(total, "tokenize", "articles") as bar:
        yield bar.update
