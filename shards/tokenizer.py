"""Load, identify and train tokenizers; training uses SentencePiece.

A tokenizer is identified by a hash of its behaviour, never by its name or folder.
"""

import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import DataError, UsageError, first_line
from shards.files import fingerprint, fsync_folder, fsync_tree, temporary_folder, temporary_name
from shards.order import keyed_permutation
from shards.os_errors import naming
from shards.reader import ShardSet

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SENTENCEPIECE_FILE = "spiece.model"
MOST_PIECES = 1_000_000
"""Largest vocabulary: SentencePiece starts with this many candidates; near 2**31 it never ends."""
_CHUNK_CHARS = 1000  # SentencePiece ignores sentences of more than 4,192 bytes
_PROBES = 8
"""Number of words that are tried to find the special tokens around a text."""
_MOST_PROBES = 1000
_TRAINER_THREADS = 2  # fixed: sums in the training depend on it


def load_tokenizer(name_or_path: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """Load a fast Hugging Face tokenizer from a folder or the local cache.

    Raises:
        DataError: the tokenizer is missing, has no fast version, no vocabulary or no padding token,
            or encodes no text.
    """
    from shards import pretrained

    name = os.fspath(name_or_path)
    tokenizer = pretrained.load_tokenizer(name)
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"the tokenizer {name!r} has no fast version (tokenizer.json); convert it first"
        )
    if not _has_words(tokenizer):
        raise DataError(_no_words(tokenizer, name))
    if tokenizer.pad_token_id is None:
        raise DataError(f"the tokenizer {name!r} has no padding token; texts could not be batched")
    try:
        with pretrained.panics_as_errors():
            tokenizer("")  # settings of a wrong type fail only at their first use
    except Exception as error:  # TypeError and others, from anywhere in transformers
        said = first_line(error)
        raise DataError(f"the tokenizer {name!r} encodes no text: {said}") from error
    return tokenizer


def _has_words(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Tell whether a vocabulary has more than special tokens and a space mark.

    transformers makes a tokenizer even from a folder without vocabulary files, by its class alone.
    """
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    words = backend.get_vocab(with_added_tokens=True)
    return any(word not in special and word.strip("▁Ġ") for word in words)


def _no_words(tokenizer: "PreTrainedTokenizerBase", name: str) -> str:
    from shards.pretrained import find_folder

    folder = find_folder(name)
    wanted = sorted({"tokenizer.json", *type(tokenizer).vocab_files_names.values()})
    there = [file for file in wanted if (folder / file).is_file()]
    if there:
        what = f"{' and '.join(there)} of {folder} has no words beside special tokens"
    else:
        what = f"{folder} has no vocabulary: it lacks {' or '.join(wanted)}"
    return f"the tokenizer {name!r} would make every text unknown or empty: {what}"


def _backend_json(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Serialise the fast tokenizer without truncation and padding, which are not its identity."""
    values: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    values["truncation"] = None
    values["padding"] = None
    return values


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash (hex) everything by which a tokenizer turns text into ids, and its special ids.

    A tokenizer that was saved to another folder and loaded again has the same hash.
    """
    names = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return fingerprint({"tokenizer": _backend_json(tokenizer), "special": special})


@dataclass(frozen=True)
class TokenizerFacts:
    """The facts about a tokenizer that data depend on."""

    sha256: str
    backend: str
    """JSON of the fast tokenizer, for :class:`tokenizers.Tokenizer`."""
    prefix_ids: tuple[int, ...]
    """Ids before a text, such as [CLS]."""
    suffix_ids: tuple[int, ...]
    """Ids after a text, such as [SEP]."""
    pad_id: int
    vocab_size: int
    """One more than the largest id."""


def tokenizer_facts(tokenizer: "PreTrainedTokenizerBase") -> TokenizerFacts:
    """Inspect a loaded tokenizer; encode its own words to find the special tokens.

    Raises:
        DataError: the tokenizer puts special tokens into the middle of a text, or none of its words
            can be encoded.
    """
    from tokenizers import Tokenizer

    backend = json.dumps(_backend_json(tokenizer))
    plain = Tokenizer.from_str(backend)
    prefix, suffix = _ends(plain)
    return TokenizerFacts(
        sha256=tokenizer_sha256(tokenizer),
        backend=backend,
        prefix_ids=prefix,
        suffix_ids=suffix,
        pad_id=int(tokenizer.pad_token_id),
        vocab_size=max(plain.get_vocab(with_added_tokens=True).values()) + 1,
    )


def _ends(plain: "Tokenizer") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the special ids before and after a text, around several words of the vocabulary.

    It uses own words, because a tokenizer may know neither a given letter nor an unknown token.
    """
    added = plain.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    words = sorted(plain.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1])
    ends: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for word, number in words[:_MOST_PROBES]:
        if number in special or len(ends) == _PROBES:
            continue
        try:
            inner = plain.encode(word, add_special_tokens=False).ids
            whole = plain.encode(word, add_special_tokens=True).ids
        except Exception:  # from the tokenizers package: normalisation made an unknown word
            continue
        if inner and not special & set(inner):
            ends.append(_around(inner, whole))
    if not ends:
        raise DataError(
            f"this tokenizer encodes none of the first {_MOST_PROBES:,} words of its own "
            "vocabulary; its tokenizer.json lacks words or an unknown token"
        )
    if len(set(ends)) > 1:
        raise DataError("this tokenizer does not put the same special tokens around every text")
    return ends[0]


def _around(inner: list[int], whole: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for start in range(len(whole) - len(inner) + 1):
        end = start + len(inner)
        if whole[start:end] == inner:
            return tuple(whole[:start]), tuple(whole[end:])
    raise DataError("this tokenizer does not put its special tokens at the ends of a text")


def uncovered(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> tuple[int, int]:
    """Count letters that no token covers.

    Returns:
        Number of characters in the texts other than spaces, and the number that no token covers.
    """
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(json.dumps(_backend_json(tokenizer)))
    letters = dropped = 0
    for text, encoded in zip(texts, plain.encode_batch(texts), strict=True):
        covered = bytearray(len(text))
        for begin, end in encoded.offsets:
            covered[begin:end] = b"\1" * (end - begin)
        seen = [bool(mark) for letter, mark in zip(text, covered, strict=True) if letter.strip()]
        letters, dropped = letters + len(seen), dropped + seen.count(False)
    return letters, dropped


def publish_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Save a tokenizer as ``folder``, atomically; keep an existing folder.

    Raises:
        DataError: the folder cannot be written.
    """
    if folder.is_dir():
        return
    try:
        with temporary_folder(folder) as temporary, naming(folder):
            tokenizer.save_pretrained(str(temporary))
            _rename_folder(temporary, folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error


def _rename_folder(temporary: Path, folder: Path) -> None:
    fsync_tree(temporary)
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same content
            raise
    fsync_folder(folder.parent)


def _sentences(shard_set: ShardSet, max_sentences: int) -> Iterator[str]:
    """Yield at most ``max_sentences`` titles and pieces of bodies in a fixed random order."""
    left = max_sentences
    for row in keyed_permutation(["train-tokenizer", shard_set.fingerprint], shard_set.num_rows):
        sample = shard_set.sample(int(row))
        for text in (sample.get("title", ""), sample.get("body", "")):
            for sentence in _chunks(" ".join(text.split())):
                yield sentence
                left -= 1
                if left == 0:
                    return


def _chunks(text: str) -> Iterator[str]:
    """Cut at spaces, if there are any, into pieces of at most ``_CHUNK_CHARS`` characters."""
    while len(text) > _CHUNK_CHARS:
        cut = text.rfind(" ", 1, _CHUNK_CHARS)
        cut = _CHUNK_CHARS if cut < 0 else cut
        yield text[:cut]
        text = text[cut:].lstrip()
    if text:
        yield text


def train_tokenizer(
    shard_set: ShardSet,
    out: str | os.PathLike[str],
    vocab_size: int = 30_000,
    *,
    lower_case: bool = True,
    max_sentences: int = 1_000_000,
    character_coverage: float = 0.9995,
) -> "PreTrainedTokenizerBase":
    """Train a SentencePiece unigram model on titles and bodies; save a Hugging Face tokenizer.

    The folder holds the files for ``AutoTokenizer.from_pretrained`` and the SentencePiece model.
    Both give the same ids, except for letters with several combining marks that have no single
    Unicode character: the ``tokenizers`` library drops the further marks, SentencePiece makes them
    unknown. The same corpus and options give the same model.

    Args:
        shard_set: a set of articles.
        out: the folder to make; it must not exist.
        vocab_size: vocabulary size, including five special pieces; smaller if the corpus has fewer.
        lower_case: fold case.
        max_sentences: number of titles and pieces of bodies (up to 1,000 characters) to train on.
        character_coverage: share of the corpus's characters that get a piece.

    Returns:
        The tokenizer. Pieces: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4; texts become [CLS] x
            [SEP].

    Raises:
        DataError: the set has no articles, the folder exists, or SentencePiece refuses.
        UsageError: an option is out of range.
    """
    folder = Path(out)
    if shard_set.kind != "articles":
        raise DataError(
            f"{shard_set.path} holds {shard_set.kind}; a tokenizer is trained on articles"
        )
    if folder.exists():
        raise DataError(f"{folder} exists already; remove it or choose another folder")
    _check_options(vocab_size, max_sentences, character_coverage)
    model = _train(_sentences(shard_set, max_sentences), vocab_size, lower_case, character_coverage)
    tokenizer = from_sentencepiece(model)
    temporary = temporary_name(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with naming(folder):
            tokenizer.save_pretrained(str(temporary))
            (temporary / SENTENCEPIECE_FILE).write_bytes(model)
        _rename_folder(temporary, folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tokenizer


def _check_options(vocab_size: int, max_sentences: int, character_coverage: float) -> None:
    """Refuse options that SentencePiece cannot train with."""
    is_size = len(PIECES) < vocab_size <= MOST_PIECES
    if not is_size or max_sentences < 1 or not 0 < character_coverage <= 1:
        raise UsageError(
            f"vocab_size {vocab_size} must be above {len(PIECES)} and at most {MOST_PIECES}, "
            f"max_sentences {max_sentences} at least 1, "
            f"character_coverage {character_coverage} above 0 and at most 1"
        )


def _train(
    sentences: Iterator[str], vocab_size: int, lower_case: bool, character_coverage: float
) -> bytes:
    """Train the SentencePiece model and return it serialised."""
    import sentencepiece

    model = io.BytesIO()
    pad, unknown, start, end, mask = PIECES
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=character_coverage,
            normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc",
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=pad,
            unk_piece=unknown,
            bos_piece=start,
            eos_piece=end,
            control_symbols=[mask],
            num_threads=_TRAINER_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"SentencePiece cannot train {vocab_size} pieces on this corpus: {error}; a vocabulary "
            "must be larger than the number of distinct characters"
        ) from error
    return model.getvalue()


def from_sentencepiece(model: bytes) -> "PreTrainedTokenizerBase":
    """Make the fast Hugging Face tokenizer of a unigram SentencePiece model with five own pieces.

    It has the same normalisation (the model's own compiled table, spaces squeezed, ends stripped),
    the same words (cut at spaces, each with a leading U+2581), and the same pieces and scores.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    backend = Tokenizer(models.Unigram(pieces, unk_id=PIECES.index("[UNK]")))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, PIECES.index(piece)) for piece in ("[CLS]", "[SEP]")],
    )
    pad, unknown, start, end, mask = PIECES
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        cls_token=start,
        sep_token=end,
        mask_token=mask,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
