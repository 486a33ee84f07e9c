"""``tnr shards tokenize`` and ``tnr shards train-tokenizer``."""

import argparse
from typing import Any

_TOKENIZE_EXAMPLE = """example:
  tnr shards tokenize data/articles --tokenizer sentence-transformers/all-MiniLM-L6-v2
  tnr shards tokenize data/articles --tokenizer data/tokenizer --title-tokens 24 --body-tokens 512
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
        help="store the token ids of every title and body",
        description=(
            "Store the token ids of every title and body beside an article set, with the\n"
            "tokenizer. Finished shards are skipped: an interrupted run is simply run again."
        ),
        epilog=_TOKENIZE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tokenize.add_argument("set", metavar="SET", help="article shard set")
    tokenize.add_argument(
        "--tokenizer",
        required=True,
        metavar="T",
        help="folder or Hugging Face name of a fast tokenizer",
    )
    tokenize.add_argument(
        "--title-tokens",
        type=int,
        default=32,
        metavar="N",
        help="longest title in tokens, special tokens included (default: %(default)s)",
    )
    tokenize.add_argument(
        "--body-tokens",
        type=int,
        default=512,
        metavar="N",
        help="longest body in tokens, special tokens included (default: %(default)s)",
    )
    tokenize.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="shards worked on at once; one process already uses all cores (default: %(default)s)",
    )
    tokenize.add_argument(
        "--skip-damaged",
        type=int,
        default=0,
        metavar="N",
        help="skip up to N damaged samples, each named, and leave them out of training (default:"
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
        type=int,
        default=30_000,
        metavar="N",
        help="pieces, the five special ones included (default: %(default)s)",
    )
    train.add_argument(
        "--keep-case",
        action="store_true",
        help="tell upper case from lower case; without it case is folded",
    )
    train.add_argument(
        "--max-sentences",
        type=int,
        default=1_000_000,
        metavar="N",
        help="titles and pieces of bodies to train on, drawn evenly (default: %(default)s)",
    )
    train.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="share of the corpus's characters that get a piece (default: %(default)s)",
    )
    train.set_defaults(run=_train_tokenizer)


def _tokenize(args: argparse.Namespace) -> None:
    import numpy as np

    from shards.damage import REPORT_NAME
    from shards.reader import ShardSet
    from shards.tokenize import FIELDS, tokenize_set
    from shards.tokens import TokenColumn

    # With samples that may be skipped, a shard of another size is no reason to stop at once.
    shard_set = ShardSet.open(args.set, check_files=args.skip_damaged <= 0)
    reader = tokenize_set(
        shard_set,
        args.tokenizer,
        title_tokens=args.title_tokens,
        body_tokens=args.body_tokens,
        processes=args.processes,
        progress=True,
        skip_damaged=args.skip_damaged,
    )
    special = len(reader.made_from["prefix_ids"]) + len(reader.made_from["suffix_ids"])
    rows = np.arange(shard_set.num_rows)
    print(f"{reader.folder}")
    for field in FIELDS:
        lengths = reader.lengths(field, rows) + special
        limit = reader.made_from[f"{field}_tokens"]
        print(
            f"  {field}: {lengths.sum():,} tokens in {len(rows):,} articles, "
            f"{lengths.mean():.1f} each, "
            f"{100 * (lengths == limit).mean():.1f}% as long as the limit of {limit}"
        )
    num_skipped = len(TokenColumn(reader).skipped_rows)
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
        print(f"  fewer than the {args.vocab_size:,} asked for: the corpus does not have more")
