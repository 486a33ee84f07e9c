"""Sets and teachers for the benchmarks of the teacher server: real ones small, made-up ones large.

A large set has a manifest and no shards, and columns of zeros in files of holes: it takes no room
on a disk, and is read as any other.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tokens import make_set

from shards.cell_record import content_of
from shards.cell_tensors import parse_header
from shards.cells import data_path, record_path, write_cell
from shards.columns import ColumnReader, ColumnWriter, describe
from shards.files import read_json, write_json_atomic
from shards.manifest import Manifest, ShardInfo, write_manifest
from shards.negatives import Negatives
from shards.order import EpochOrder
from shards.reader import ShardSet
from trainer.config.schema import TrainConfig
from trainer.export.folder import load_export
from trainer.export.info import sealed
from trainer.recipes.load import load_config
from trainer.tasks.build import build
from trainer.teacher_server.cells import Target
from trainer.teacher_server.kinds.logits import SCORES, Logits
from trainer.teacher_server.kinds.text import TextVectors
from trainer.teacher_server.request import Source

A_SHARD = 4096
HEAD = 16_384
"""More than the header of a cell has."""


def settings(articles: ShardSet, run: Path, backbone: str | None, layers: int) -> list[str]:
    """Words of a model with the first layers of a pre-trained encoder, or as large a random one."""
    words = ["--data.articles", str(articles.path), "--run.dir", str(run)]
    if backbone is None:
        sizes = {"hidden_size": 384, "num_heads": 12, "intermediate_size": 1536}
        words += [w for name, n in sizes.items() for w in (f"--model.backbone.{name}", str(n))]
        return [*words, "--model.backbone.num_layers", str(layers)]
    kept = [str(layer) for layer in range(layers)]
    return [*words, "--model.backbone.name", backbone, "--model.backbone.layers", *kept]


def small_set(folder: Path, count: int, backbone: str | None) -> ShardSet:
    """Articles with tokens of the encoder's tokenizer."""
    return make_set(folder, count, backbone)[0]


def export_teacher(config: TrainConfig, folder: Path, seed: int) -> str:
    """A six-layer teacher that is as heavy as a trained one."""
    torch.manual_seed(seed)
    built = build(config)
    built.export(built.module.model, folder, {})
    return str(folder)


def teacher_config(articles: ShardSet, folder: Path, backbone: str | None) -> TrainConfig:
    """Of a six-layer post-training run."""
    return load_config("post_train", settings(articles, folder / "teacher", backbone, 6))


def other_identity(teacher: str, folder: Path, number: int) -> str:
    """The same teacher under another identity: its columns are others', its weights take no
    room."""
    folder.mkdir(parents=True)
    for file in Path(teacher).iterdir():
        (folder / file.name).hardlink_to(file)
    info = read_json(Path(teacher) / "tnr.json") | {"weights_sha256": f"{number:064x}"}
    write_json_atomic(folder / "tnr.json", sealed(info, folder))
    return str(folder)


def copy_columns(articles: ShardSet, filled: str, others: Sequence[str]) -> None:
    """Give other teachers' columns what one was filled with, and a little noise."""
    rng = np.random.default_rng(0)
    reader = ColumnReader.open(articles, TextVectors.name, identity_of(filled, articles))
    for other in others:
        writer = ColumnWriter(articles, TextVectors.name, identity_of(other, articles))
        for shard in writer.missing():
            cell = reader.cell(shard)
            writer.write(
                shard,
                {
                    name: (array + rng.normal(0, 0.01, array.shape)).astype(array.dtype)
                    for name, array in cell.items()
                },
            )


def identity_of(teacher: str, articles: ShardSet) -> dict[str, object]:
    """What a teacher's column of the defaults is made from."""
    return TextVectors(load_export(teacher), Source(articles)).made_from


def large_set(folder: Path, rows: int, teachers: Sequence[str], width: int) -> ShardSet:
    """A set of so many rows with complete columns of all teachers' vectors, in files of holes."""
    counts = [A_SHARD] * (rows // A_SHARD) + ([rows % A_SHARD] if rows % A_SHARD else [])
    shards = [
        ShardInfo(name=f"news-{number:06d}.tar", samples=count, bytes=1, sha256=f"{number:064x}")
        for number, count in enumerate(counts)
    ]
    folder.mkdir(parents=True)
    write_manifest(folder, Manifest("articles", tuple(shards), ("body", "id", "title")))
    articles = ShardSet.open(folder, check_files=False)
    for teacher in teachers:
        target = Target(articles, TextVectors.name, identity_of(teacher, articles))
        hollow_column(target, {"title": width, "body": width})
    return articles


def large_logits(articles: ShardSet, teachers: Sequence[str], num_negatives: int) -> Logits:
    """Complete columns of logits of two epochs, in files of holes."""
    counts = [shard.samples for shard in articles.shards]
    logits = Logits(
        articles=articles,
        teachers=[load_export(teacher) for teacher in teachers],
        negatives=Negatives(EpochOrder(counts, articles.fingerprint, 0), num_negatives),
        epochs=(0, 1),
        dtype="float16",
        compute="fp32",
        settings="",
    )
    for epoch in logits.epochs:
        for teacher in logits.teachers:
            hollow_column(logits.column(teacher, epoch).target, {SCORES: 1 + num_negatives})
    return logits


def hollow_column(target: Target, widths: dict[str, int]) -> None:
    """A complete column of zeros in float16, each tensor so wide, in files of holes."""
    column, digest = ColumnWriter(*target).folder, describe(*target).fingerprint
    shards = target.shard_set.manifest.shards
    counts = {shard.samples for shard in shards}
    templates = {count: _template(column, digest, count, widths) for count in counts}
    for shard in shards:
        head, record, places = templates[shard.samples]
        own = replace(record, shard=shard.name, shard_sha256=shard.sha256)
        own = replace(own, content=content_of(own, places))
        with data_path(column, shard).open("wb") as file:
            file.write(head.replace(record.content.encode(), own.content.encode()))
            file.truncate(record.bytes)
        record_path(column, shard).write_text(json.dumps(asdict(own)))


def _template(column: Path, digest: str, rows: int, widths: dict[str, int]):
    """The beginning and the record of a cell of zeros, written once by the real writer."""
    shard = ShardInfo(name=f"template-{rows}.tar", samples=rows, bytes=1, sha256="0" * 64)
    zeros = {name: np.zeros((rows, width), np.float16) for name, width in widths.items()}
    record = write_cell(column, digest, shard, zeros)
    path = data_path(column, shard)
    with path.open("rb") as file:
        head = file.read(HEAD)
    path.unlink()
    record_path(column, shard).unlink()
    return head, record, parse_header(head, path).places
