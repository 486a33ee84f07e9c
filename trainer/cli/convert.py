"""``tnr convert``: turn released weights of another format into a backbone's folder."""

import argparse
from pathlib import Path


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "convert",
        help="make a backbone folder from UniLMv2's released files",
        description=(
            "Write UniLMv2, the paper's language model, as a Hugging Face folder for "
            "model.backbone.name and tnr shards tokenize --tokenizer. Microsoft lists the "
            "released files unilm2-base-uncased.bin and unilm2-base-uncased-vocab.txt in the "
            "README of s2s-ft in its repository microsoft/unilm. The sizes follow from the "
            "weights, so the released configuration is not needed. No code in the weights file "
            "is run. Models trained on the folder have UniLMv2's relative position bias."
        ),
        epilog=(
            "example: tnr convert unilmv2 --weights unilm2-base-uncased.bin "
            "--vocab unilm2-base-uncased-vocab.txt --out path/to/unilm"
        ),
    )
    parser.add_argument("model", choices=["unilmv2"], help="format to convert")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="file of the released checkpoint"
    )
    parser.add_argument(
        "--vocab", required=True, metavar="FILE", help="file of its word pieces, one per line"
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="folder to write; must not exist yet"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert the weights, and print what was written."""
    from trainer.cli.writing import new_folder
    from trainer.models.unilmv2 import save_unilmv2

    with new_folder(arguments.out) as folder:
        save_unilmv2(arguments.weights, arguments.vocab, folder)
    print(f"{arguments.out}: UniLMv2 with its relative position bias and tokenizer")
    return 0
