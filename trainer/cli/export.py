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
        _copy(source, folder)
    print(f"{arguments.out}: {export.info['kind']} of {export.info.get('run', source)}")
    return 0


def _copy(source: Path, folder: Path) -> None:
    """Copy the files of an export: contents alone, for older weights are their owner's only.

    A device would never end, and a link may name anything on this machine. Only the local Hugging
    Face cache is made of links, to its own ``blobs``.

    Raises:
        DataError: An entry is neither a regular file nor a folder, or a link leads out of the
            export.
    """
    import shutil

    from trainer.errors import DataError

    inside = [source.resolve()]
    if source.resolve().parent.name == "snapshots":
        inside.append(source.resolve().parents[1] / "blobs")
    for entry in sorted(source.rglob("*")):
        if entry.is_symlink() and not any(map(entry.resolve().is_relative_to, inside)):
            raise DataError(
                f"{entry} is a link to {entry.resolve()}, outside the export; put the file in its "
                "place, or remove the link"
            )
        copy = folder / entry.relative_to(source)
        if entry.is_dir() and not entry.is_symlink():
            copy.mkdir()
        elif entry.is_file():
            shutil.copyfile(entry, copy)
        else:
            raise DataError(f"{entry} is not a regular file; remove it")
