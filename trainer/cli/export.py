"""``tnr export``: write a finished run's model to its own folder."""

import argparse
from pathlib import Path

from trainer.export.formats import FORMATS, format_named


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "export",
        help="write a run's model to its own folder, for tnr or for other tools",
        description=(
            "Check a run's exported model (weights against their sha256) and write it to a folder "
            "in one of several formats."
        ),
        epilog=(
            "example: tnr export runs/student --out models/student-1-layer --format transformers"
        ),
    )
    parser.add_argument("source", metavar="RUN", help="run folder, teacher copy or export")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder to write; must not exist yet"
    )
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        default=next(iter(FORMATS)),
        help="; ".join(f"{name}: {format_named(name).summary}" for name in FORMATS)
        + " (default %(default)s)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify the exported model and write it."""
    from trainer.cli.writing import new_folder
    from trainer.errors import ModelError
    from trainer.export.folder import open_export
    from trainer.export.info import INFO

    source = Path(arguments.source)
    if not (source / INFO).is_file() and (source / "export").is_dir():
        source = source / "export"
    export, chosen = open_export(source), format_named(arguments.format)
    if problem := chosen.problem(export):
        raise ModelError(f"{source} cannot be written with --format {chosen.name}: {problem}")
    with new_folder(arguments.out) as folder:
        chosen.write(export, folder)
    kind, run = export.info["kind"], export.info.get("run", source)
    print(f"{arguments.out}: {kind} of {run}, format {chosen.name}")
    return 0
