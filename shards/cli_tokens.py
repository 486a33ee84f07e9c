"""Define ``tnr shards tokenize`` and ``tnr shards train-tokenizer``."""

import argparse
from typing import TYPE_CHECKING, Any

from shards.errors import UsageError
from shards.numbers import real, whole
from shards.text_fields import (
    DEFAULT_FIELDS,
    DEFAULT_TOKENS,
    TEXT_FIELDS,
    field_text,
    listed,
    parse_fields,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shards.tokens import TokenColumn

_LOOKED_AT = 1000  # articles, for the share of tokens that the tokenizer does not know
_READ_AGAIN = 100  # articles, for the share of letters that the tokenizer drops
_MUCH_UNKNOWN = 0.05
_TOKENIZE_EXAMPLE = """example:
  tnr shards tokenize data/articles --tokenizer sentence-transformers/all-MiniLM-L6-v2
  tnr shards tokenize data/articles --tokenizer data/tokenizer --title-tokens 24 --body-tokens 512
  tnr shards tokenize data/mind --tokenizer data/tokenizer --fields title,abstract,category
"""
_TRAIN_EXAMPLE = """example:
  tnr shards train-tokenizer data/articles --out data/tokenizer --vocab-size 30000
  tnr shards tokenize data/articles --tokenizer data/tokenizer
"""


def register(subparsers: Any) -> None:
    """Add both commands to the sub-commands of ``tnr shards``."""
    _register_tokenize(subparsers)
    _register_train(subparsers)


def _register_tokenize(subparsers: Any) -> None:
    tokenize = subparsers.add_parser(
        "tokenize",
        help="store the token ids of every article's texts",
        description=(
            "Store the token ids of every article's title and body, or of other fields, beside an\n"
            "article set, with the tokenizer. Finished shards are skipped: to continue an\n"
            "interrupted run, run the same command again."
        ),
        epilog=_TOKENIZE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tokenize.add_argument("set", metavar="SET", help="article shard set")
    tokenize.add_argument(
        "--tokenizer",
        required=True,
        metavar="T",
        help="folder of a fast tokenizer, or its Hugging Face name in the local cache (`hf "
        "download NAME` puts it there; no command contacts a hub)",
    )
    tokenize.add_argument(
        "--fields",
        default=",".join(DEFAULT_FIELDS),
        metavar="F,F",
        help=f"fields to store, of {listed(TEXT_FIELDS)} (default: %(default)s); category is the"
        " words of category and subcategory. Click tasks read the fields in data.news_text,"
        " post-training reads title and body",
    )
    for field in TEXT_FIELDS:
        tokenize.add_argument(
            f"--{field}-tokens",
            type=whole(1),
            metavar="N",
            help=f"longest {field} in tokens, including special tokens"
            f" (default: {DEFAULT_TOKENS[field]})",
        )
    tokenize.add_argument(
        "--processes",
        type=whole(1, 4096),
        default=1,
        metavar="N",
        help="shards processed at once; one process already uses all cores (default: %(default)s)",
    )
    tokenize.add_argument(
        "--skip-damaged",
        type=whole(0),
        default=0,
        metavar="N",
        help="skip up to N damaged samples, name each, and leave them out of training (default:"
        " stop at the first)",
    )
    tokenize.set_defaults(run=_tokenize)


def _register_train(subparsers: Any) -> None:
    train = subparsers.add_parser(
        "train-tokenizer",
        help="train a SentencePiece tokenizer on titles and bodies",
        description=(
            "Train a SentencePiece unigram tokenizer on the titles and bodies of an article set,\n"
            "and write it as a folder that Hugging Face's AutoTokenizer loads."
        ),
        epilog=_TRAIN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("set", metavar="SET", help="article shard set")
    train.add_argument("--out", required=True, metavar="FOLDER", help="folder to make")
    train.add_argument(
        "--vocab-size",
        type=whole(1),
        default=30_000,
        metavar="N",
        help="vocabulary size, including the five special pieces (default: %(default)s)",
    )
    train.add_argument(
        "--keep-case",
        action="store_true",
        help="distinguish upper case from lower case (default: fold case)",
    )
    train.add_argument(
        "--max-sentences",
        type=whole(1),
        default=1_000_000,
        metavar="N",
        help="titles and pieces of bodies to train on, drawn evenly (default: %(default)s)",
    )
    train.add_argument(
        "--character-coverage",
        type=real(),
        default=0.9995,
        metavar="SHARE",
        help="share of the corpus's characters that get a piece (default: %(default)s)",
    )
    train.set_defaults(run=_train_tokenizer)


def _tokenize(args: argparse.Namespace) -> None:
    import numpy as np

    from shards import pretrained
    from shards.damage import REPORT_NAME
    from shards.reader import ShardSet
    from shards.tokenize import tokenize_set
    from shards.tokens import TokenColumn

    fields = parse_fields(args.fields, "--fields")
    given = {field: getattr(args, f"{field}_tokens") for field in TEXT_FIELDS}
    lengths = {field: tokens for field, tokens in given.items() if tokens is not None}
    for field in lengths:
        if field not in fields:
            raise UsageError(
                f"--{field}-tokens is given, but --fields {args.fields} does not store the {field}"
            )
    # If samples may be skipped, a shard of another size is not a reason to stop at once.
    shard_set = ShardSet.open(args.set, check_files=args.skip_damaged <= 0)
    reader = tokenize_set(
        shard_set,
        args.tokenizer,
        fields=fields,
        **{f"{field}_tokens": tokens for field, tokens in lengths.items()},
        processes=args.processes,
        progress=True,
        skip_damaged=args.skip_damaged,
    )
    column = TokenColumn(reader)
    rows = np.arange(shard_set.num_rows)
    print(f"{reader.folder}")
    for field, limit in column.limits.items():
        stored = column.lengths(field, rows, limit)
        print(
            f"  {field}: {stored.sum():,} tokens in {len(rows):,} articles, "
            f"{stored.mean():.1f} each, "
            f"{100 * (stored == limit).mean():.1f}% as long as the limit of {limit}"
        )
    tokenizer = pretrained.load_tokenizer(column.tokenizer_dir)
    _print_unknown(column, tokenizer.unk_token_id)
    _print_dropped(column, tokenizer)
    repeated = shard_set.manifest.counts.get("body_from_abstract", 0)
    if repeated and {"abstract", "body"} <= set(fields):
        print(
            f"  {repeated:,} articles without a body have their abstract as body: a model that"
            " reads both fields reads it twice"
        )
    num_skipped = len(column.skipped_rows)
    if num_skipped:
        print(
            f"  {num_skipped:,} damaged articles are skipped and left out of training, each listed"
            f" in {reader.folder / REPORT_NAME}"
        )


def _train_tokenizer(args: argparse.Namespace) -> None:
    from shards.reader import ShardSet
    from shards.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(
        ShardSet.open(args.set),
        args.out,
        args.vocab_size,
        lower_case=not args.keep_case,
        max_sentences=args.max_sentences,
        character_coverage=args.character_coverage,
    )
    size = len(tokenizer)
    print(f"{args.out}: {size:,} pieces")
    if size < args.vocab_size:
        print(f"  fewer than the requested {args.vocab_size:,}: the corpus has no more")


def _print_unknown(column: "TokenColumn", unknown_id: int | None) -> None:
    """Report fields in which a tokenizer does not know many tokens, from sampled articles."""
    import numpy as np

    if unknown_id is None or unknown_id in (*column.prefix_ids, *column.suffix_ids):
        return
    rows = np.unique(np.linspace(0, column.num_rows - 1, _LOOKED_AT, dtype=np.int64))
    for field, limit in column.limits.items():
        ids, mask = column.batch(field, rows, limit)
        words = int(mask.sum()) - len(rows) * column.num_special
        unknown = int(((ids == unknown_id) & (mask != 0)).sum())
        if unknown > _MUCH_UNKNOWN * words:
            print(
                f"  note: the tokenizer does not know {100 * unknown / words:.0f}% of the tokens of"
                f" the {field} (from {len(rows):,} articles); take a tokenizer of their language"
            )


def _print_dropped(column: "TokenColumn", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Report fields in which a tokenizer drops many letters, from a sample of articles.

    A tokenizer without an unknown token drops what its vocabulary lacks, such as letters that a
    byte-level tokenizer was not trained on.
    """
    import numpy as np

    from shards.tokenizer import uncovered

    rows = np.linspace(0, column.num_rows - 1, _READ_AGAIN, dtype=np.int64)
    kept = np.setdiff1d(rows, column.skipped_rows)
    articles = column.reader.shard_set.read(kept.tolist())
    for field in column.limits:
        texts = [text for article in articles if (text := field_text(article, field))]
        letters, dropped = uncovered(tokenizer, texts)
        if dropped > _MUCH_UNKNOWN * letters:
            print(
                f"  note: the tokenizer drops {100 * dropped / letters:.0f}% of the letters of the "
                f"{field} without a token (from {len(texts):,} texts); take a tokenizer whose "
                "vocabulary has these letters, or one with an unknown token"
            )
