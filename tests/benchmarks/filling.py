"""Filling the columns of a stage I teacher, against a plain padded loop of the same teacher.

The loop does what the released code does: batches of 32 articles in the order of the corpus, titles
padded to 24 and bodies to 512 tokens, in fp32. Texts have the paper's mean lengths (title 11.84,
body 511.43 words; a body's length is lognormal with deviation 0.6) out of a Zipf vocabulary. Every
round runs all ways in turn; loading, storing and checking are in all of them.

    python tests/benchmarks/filling.py

On a machine that is busy, --cpu-seconds --threads 1 counts CPU seconds in place of the clock's.
Prints articles/s as medians with ranges, ratios of the same round, and bytes stored over
rows x kinds x M x width x 2.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from shards.columns import ColumnWriter, describe
from shards.reader import ShardSet
from shards.tokenize import tokenize_set
from shards.tokenizer import train_tokenizer
from shards.tokens import TokenColumn
from shards.writer import ShardWriter
from trainer.config.schema import BackboneConfig, ModelConfig
from trainer.export.folder import export_model, load_export
from trainer.models.build import build_news_encoder
from trainer.teacher_server.cells import stored_bytes
from trainer.teacher_server.fill import FillRequest, fill
from trainer.teacher_server.kinds.text import TextVectors
from trainer.teacher_server.ranks import resolve_compute
from trainer.teacher_server.request import Source

TITLE, BODY, BATCH = 24, 512, 32
TITLE_WORDS, BODY_WORDS, SPREAD = 11.84, 511.43, 0.6


def make_set(folder: Path, count: int, per_shard: int, seed: int = 0) -> ShardSet:
    """Articles of the paper's mean lengths."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(20_000)]

    def text(length: int) -> str:
        return " ".join(words[int(i)] for i in np.minimum(rng.zipf(1.3, length), 20_000) - 1)

    with ShardWriter(folder, "articles", samples_per_shard=per_shard) as writer:
        for row in range(count):
            title = max(1, round(rng.normal(TITLE_WORDS, 3)))
            body = max(1, round(rng.lognormal(np.log(BODY_WORDS) - SPREAD**2 / 2, SPREAD)))
            writer.add({"id": str(row), "title": text(title), "body": text(body)})
        return writer.finish()


def make_teacher(folder: Path, tokens: TokenColumn, options: argparse.Namespace, seed: int) -> str:
    """An exported encoder with random weights."""
    torch.manual_seed(seed)
    backbone = BackboneConfig(
        num_layers=options.layers,
        hidden_size=options.width,
        num_heads=options.width // 64,
        intermediate_size=4 * options.width,
        max_positions=BODY,
    )
    sizes = {"vocab_size": tokens.vocab_size, "pad_id": tokens.pad_id}
    info = {
        "tokenizer_sha256": tokens.tokenizer_sha256,
        "max_title_tokens": TITLE,
        "max_body_tokens": BODY,
        "pad_to_max": False,
        "model_settings": {"pooling": "attention", "pooling_mask": True, "news_dim": 256},
    }
    export_model(build_news_encoder(ModelConfig(backbone=backbone), **sizes), folder, None, info)
    return str(folder)


def padded_loop(teacher: str, articles: ShardSet) -> None:
    """Every article in batches of 32, padded to the longest there may be, stored in the same
    way."""
    export = load_export(teacher)
    tokens, model = export.tokens(articles), export.load_model().eval()
    identity = TextVectors(export, Source(articles)).made_from | {"way": "padded loop"}
    writer = ColumnWriter(articles, TextVectors.name, identity)
    for shard in range(articles.num_shards):
        rows = np.array(articles.rows_of(shard))
        cell: dict[str, list[np.ndarray]] = {"title": [], "body": []}
        with torch.inference_mode():
            for start in range(0, len(rows), BATCH):
                for field, length in (("title", TITLE), ("body", BODY)):
                    batch = tokens.batch(field, rows[start : start + BATCH], length, True)
                    cell[field].append(model(*map(torch.from_numpy, batch)).numpy())
        writer.write(shard, {f: np.concatenate(v).astype(np.float16) for f, v in cell.items()})


def forget(articles: ShardSet) -> None:
    """Remove what was stored, so that it is computed again."""
    for path in articles.columns_dir.glob("teacher-text-*/*"):
        path.unlink()


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


def speed(folder: Path, options: argparse.Namespace) -> None:
    """Articles a second of the loop and of filling, round after round in turn."""
    articles = make_set(folder / "set", options.articles, options.articles)
    train_tokenizer(articles, folder / "tokenizer", 8000)
    tokenize_set(articles, folder / "tokenizer", title_tokens=TITLE, body_tokens=BODY)
    tokens = TokenColumn.open(articles)
    teacher = make_teacher(folder / "teacher", tokens, options, 0)
    rows = np.arange(articles.num_rows)
    real = sum(int(tokens.lengths(f, rows, n).sum()) for f, n in (("title", 24), ("body", 512)))
    print(
        f"{articles.num_rows} articles, {options.layers} layers of {options.width}, "
        f"{options.threads} threads; {100 * real / (len(rows) * (TITLE + BODY)):.0f}% of the "
        "padded tokens are text"
    )

    def filling(compute: str) -> None:
        request = FillRequest(articles, None, compute=compute, batch_tokens=options.batch_tokens)
        fill([teacher], request, lambda line: None)

    auto = resolve_compute("auto", "cpu")
    if auto != "bf16":
        print("left out: filling, bf16; this CPU only emulates it")
    ways = {"padded loop, fp32": lambda: padded_loop(teacher, articles)}
    ways |= {f"filling, {c}": lambda c=c: filling(c) for c in dict.fromkeys(("fp32", auto))}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    second = "CPU second" if options.cpu_seconds else "second"
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            forget(articles)
            started = clock()
            way()
            if turn:  # the first warms up
                rates[name].append(articles.num_rows / (clock() - started))
    base = rates["padded loop, fp32"]
    for name, values in rates.items():
        ratio = [ours / theirs for ours, theirs in zip(values, base, strict=True)]
        print(f"  {name:<18} {spread(values)} articles a {second}, {spread(ratio)}x of the loop")


def stored(folder: Path, options: argparse.Namespace) -> None:
    """Bytes on disk of M small teachers of the paper's width over a shard of a real size."""
    count, teachers = 5000, 4
    articles = make_set(folder / "many", 200, 200)  # only to have a tokenizer
    train_tokenizer(articles, folder / "small", 1000)
    with ShardWriter(folder / "set", "articles", samples_per_shard=2500) as writer:
        for row in range(count):
            writer.add({"id": str(row), "title": "bake dera", "body": "bakan"})
        articles = writer.finish()
    tokenize_set(articles, folder / "small", title_tokens=TITLE, body_tokens=BODY)
    tiny = argparse.Namespace(layers=1, width=64)
    tokens = TokenColumn.open(articles)
    names = [make_teacher(folder / f"t{m}", tokens, tiny, m) for m in range(teachers)]
    request = FillRequest(articles, None)
    fill(names, request, lambda line: None)
    all_targets = [TextVectors(load_export(name), request).target for name in names]
    data = sum(map(stored_bytes, all_targets))
    everything = sum(
        file.stat().st_size for target in all_targets for file in describe(*target).folder.iterdir()
    )
    formula = count * 2 * teachers * 256 * 2
    print(
        f"bytes of {teachers} teachers over {count} articles: data {data / formula:.5f}, "
        f"with records {everything / formula:.5f} of rows x kinds x M x width x 2"
    )


def main() -> None:
    """Print every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-seconds", action="store_true", help="for a machine that is busy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder) / "speed", options)
        stored(Path(folder) / "bytes", options)


if __name__ == "__main__":
    main()
