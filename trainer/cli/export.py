"""``tnr export``: a finished run's model as a folder of its own."""

import argparse
from pathlib import Path


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "export",
        help="copy a run's model out as a self-contained Hugging Face folder",
        description=(
            "Check a run's exported model (weights against their sha256) and copy it to a folder "
            "with config.json, model.safetensors, the tokenizer and tnr.json."
        ),
        epilog="example: tnr export runs/student --out models/student-1-layer",
    )
    parser.add_argument("source", metavar="RUN", help="run folder, teacher copy or export")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder to write; must not exist yet"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify and copy."""
    import shutil

    from shards.files import sha256_file
    from trainer.cli.writing import new_folder
    from trainer.errors import ModelError
    from trainer.export.folder import INFO, WEIGHTS, load_export

    source = Path(arguments.source)
    if not (source / INFO).is_file() and (source / "export").is_dir():
        source = source / "export"
    export = load_export(source)
    if sha256_file(source / WEIGHTS) != export.weights_sha256:
        raise ModelError(f"{source / WEIGHTS} is not what {INFO} says: damaged or edited")
    with new_folder(arguments.out) as folder:
        # Contents alone: an older export's weights may be readable by their owner only.
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    print(f"{arguments.out}: {export.info['kind']} of {export.info.get('run', source)}")
    return 0
