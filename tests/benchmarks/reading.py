"""Reading shuffled articles, against webdataset, litdata and mosaicml-streaming, and indexing tars.

    python tests/benchmarks/reading.py                        # all of it: about 20 minutes, 5 GB
    python tests/benchmarks/reading.py --parts read,index     # without the sets of 200 k and 2 M
    python tests/benchmarks/reading.py --environments FOLDER  # keep the peers' environments there

Every reader is a process of its own on one and the same core, with no workers; it reads all
articles once before the clock starts, so that they come out of the page cache, then once more. The
readers take turns, and each round gives one ratio: what is reported is their median and their
extremes. litdata and mosaicml-streaming get environments of their own, made with pip without the
parts of their dependencies that reading does not use; torchvision, which does not import beside
torch for CPUs, is replaced by an empty module for mosaicml-streaming. A peer that cannot be
installed is reported as such.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

CORE = 0
NUM_ARTICLES = 50_000
BODY_WORDS = 525  # about 3.4 kB a sample
SMALL, LARGE = 200_000, 2_000_000
READ_IN_MEMORY_TEST = 60_000
PEERS = {
    "litdata": (
        ["litdata==0.2.76"],
        ["boto3", "filelock", "lightning-utilities", "numpy", "obstore", "orjson", "requests",
         "tifffile", "torch==2.13.0"],
    ),
    "mosaicml": (
        ["mosaicml-streaming==0.13.0"],
        ["azure-identity", "azure-storage-blob", "azure-storage-file-datalake", "boto3", "Brotli",
         "catalogue", "filelock", "google-cloud-storage", "matplotlib", "numpy<2.2", "oci",
         "paramiko<4", "python-snappy", "torch==2.13.0", "tqdm", "transformers<5", "xxhash<4",
         "zstd"],
    ),
}  # fmt: skip


# ---- data ----


def make_articles(count: int, body_words: int) -> Iterator[dict[str, str]]:
    """Made-up articles, the same ones every time."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(5000)]
    for number in range(count):
        body = " ".join(rng.choices(words, k=rng.randint(body_words // 2, body_words * 3 // 2)))
        yield {"id": f"N{number}", "title": " ".join(rng.choices(words, k=10)), "body": body}


def stored_articles(folder: Path) -> Iterator[bytes]:
    """The articles as the peers' writers get them: the JSON bytes of each."""
    with (folder / "articles.jsonl").open("rb") as file:
        for line in file:
            yield line.rstrip(b"\n")


def prepare_ours(folder: Path) -> None:
    from shards.writer import ShardWriter

    with ShardWriter(folder / "ours", "articles") as writer:
        for line in stored_articles(folder):
            writer.add(json.loads(line))
        writer.finish()


def one_line(line: bytes) -> bytes:
    return line


def prepare_litdata(folder: Path) -> None:
    import litdata

    litdata.optimize(
        fn=one_line,
        inputs=list(stored_articles(folder)),
        output_dir=str(folder / "litdata"),
        chunk_bytes="16MB",
        num_workers=1,
        verbose=False,
    )


def prepare_mosaicml(folder: Path) -> None:
    import_mosaicml()
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mosaicml"), columns={"json": "bytes"}) as out:
        for line in stored_articles(folder):
            out.write({"json": line})


# ---- readers: each yields every article once, shuffled by the seed, decoded ----


def read_ours(folder: Path, seed: int) -> Iterator[Any]:
    from shards.reader import ShardSet

    articles = ShardSet.open(folder / "ours")
    rows = list(range(articles.num_rows))
    random.Random(seed).shuffle(rows)
    return map(articles.sample, rows)


def read_ours_in_windows(folder: Path, seed: int) -> Iterator[Any]:
    """In the order of training, in batches of 64."""
    import numpy as np

    from shards.order import EpochOrder
    from shards.reader import ShardSet

    articles = ShardSet.open(folder / "ours")
    counts = np.diff(articles.shard_starts).tolist()
    rows = EpochOrder(counts, articles.fingerprint, seed).rows(0, 0, articles.num_rows)
    for start in range(0, len(rows), 64):
        yield from articles.read(rows[start : start + 64])


def read_webdataset(folder: Path, seed: int) -> Iterator[Any]:
    import webdataset

    urls = [str(path) for path in sorted((folder / "ours").glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=seed)
    return (sample["json"] for sample in dataset.shuffle(1000, seed=seed).decode())


def read_litdata(
    folder: Path, seed: int, loads: Callable[[Any], Any] = lambda item: json.loads(bytes(item))
) -> Iterator[Any]:
    import litdata

    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, seed=seed)
    return map(loads, dataset)


def read_litdata_orjson(folder: Path, seed: int) -> Iterator[Any]:
    import orjson

    return read_litdata(folder, seed, orjson.loads)


def read_mosaicml(folder: Path, seed: int) -> Iterator[Any]:
    import_mosaicml()
    from streaming import StreamingDataset

    dataset = StreamingDataset(
        local=str(folder / "mosaicml"), shuffle=True, shuffle_seed=seed, batch_size=64
    )
    return (json.loads(sample["json"]) for sample in dataset)


class _Empty(types.ModuleType):
    """A module of which every attribute is an empty class."""

    __path__: list[str] = []  # noqa: RUF012 (what makes a module a package)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _EmptyTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def import_mosaicml() -> None:
    import transformers  # noqa: F401 (it would try the empty torchvision)

    sys.meta_path.insert(0, _EmptyTorchvision())


READERS: dict[str, tuple[str, Callable[[Path, int], Iterator[Any]]]] = {
    "ours": ("ours", read_ours),
    "ours, windows of 4 shards": ("ours", read_ours_in_windows),
    "webdataset": ("ours", read_webdataset),
    "litdata": ("litdata", read_litdata),
    "litdata with orjson": ("litdata", read_litdata_orjson),
    "mosaicml-streaming": ("mosaicml", read_mosaicml),
}
PREPARE = {"ours": prepare_ours, "litdata": prepare_litdata, "mosaicml": prepare_mosaicml}


def measure_reader(name: str, folder: Path, seed: int) -> dict[str, float]:
    read = READERS[name][1]
    consume(read(folder, seed))
    start = time.perf_counter()
    count, characters = consume(read(folder, seed + 1))
    seconds = time.perf_counter() - start
    return {"samples": count, "characters": characters, "rate": count / seconds}


def consume(samples: Iterable[Any]) -> tuple[int, int]:
    count = characters = 0
    for sample in samples:
        count += 1
        characters += len(sample["body"])
    return count, characters


# ---- indexing, memory, first sample: ours alone ----


def tar_member(name: bytes, data: bytes) -> bytes:
    header = b"%-100s0000444\0000000000\0000000000\000%011o\00000000000000\0        0" % (
        name.ljust(100, b"\0"),
        len(data),
    )
    header = header.ljust(257, b"\0") + b"ustar\00000"
    header = header.ljust(512, b"\0")
    header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
    return header + data + bytes(-len(data) % 512)


def write_foreign(folder: Path, lines: Iterable[bytes], text: bool) -> None:
    """Tars as others make them: one JSON member a sample, or title and body for themselves."""
    folder.mkdir()
    file = None
    for number, line in enumerate(lines):
        if number % 4096 == 0:
            if file is not None:
                file.write(bytes(1024))
                file.close()
            file = (folder / f"shard_{number // 4096:05d}.tar").open("wb")
        assert file is not None
        if text:
            article = json.loads(line)
            for field in ("title", "body"):
                name = b"%09d.%s.txt" % (number, field.encode())
                file.write(tar_member(name, article[field].encode()))
        else:
            file.write(tar_member(b"%09d.json" % number, line))
    if file is not None:
        file.write(bytes(1024))
        file.close()


def measure_index(folder: Path) -> dict[str, float]:
    from shards.foreign import index_tars

    for path in folder.glob("*.tar"):
        path.read_bytes()
    start = time.perf_counter()
    made = index_tars([folder], force=True)
    return {"rate": made.num_rows / (time.perf_counter() - start)}


def write_large(folder: Path, count: int) -> None:
    """A set of our own of ``count`` articles of about 1 kB, written directly."""
    from shards.files import sha256_file
    from shards.index import IndexBuilder
    from shards.manifest import Manifest, ShardInfo, write_manifest

    folder.mkdir()
    bodies = [article["body"] for article in make_articles(1000, 130)]
    shards = []
    for first in range(0, count, 4096):
        path, index = folder / f"news-{first // 4096:06d}.tar", IndexBuilder()
        with path.open("wb") as file:
            for row in range(first, min(count, first + 4096)):
                article = {"id": f"N{row}", "title": f"Title {row}", "body": bodies[row % 1000]}
                data = json.dumps(article).encode()
                index.add(file.tell() + 512, data)
                file.write(tar_member(b"%09d.json" % row, data))
            file.write(bytes(1024))
        index.write(path.with_suffix(".idx"))
        size = path.stat().st_size
        shards.append(ShardInfo(path.name, index.samples, size, sha256_file(path)))
    write_manifest(folder, Manifest("articles", tuple(shards), ("body", "id", "title")))


def measure_memory(folder: Path, seed: int) -> dict[str, float]:
    """Read some windows of an epoch and then rows from anywhere; the peak of resident memory."""
    import numpy as np

    from shards.order import EpochOrder
    from shards.reader import ShardSet

    articles = ShardSet.open(folder)
    order = EpochOrder(np.diff(articles.shard_starts).tolist(), articles.fingerprint, seed)
    consume(articles.read([row])[0] for row in order.rows(0, 0, READ_IN_MEMORY_TEST))
    anywhere = np.random.default_rng(seed).integers(
        articles.num_rows, size=READ_IN_MEMORY_TEST // 6
    )
    consume(map(articles.sample, anywhere))
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"peak_mib": int(peak.split()[1]) / 1024}


def measure_first(folder: Path, seed: int, share_pct: int) -> dict[str, float]:
    """From nothing open to the first sample at a place in the epoch; imports are not counted."""
    import numpy as np

    from shards.order import EpochOrder
    from shards.reader import ShardSet

    start = time.perf_counter()
    articles = ShardSet.open(folder)
    order = EpochOrder(np.diff(articles.shard_starts).tolist(), articles.fingerprint, seed)
    at = order.num_units * share_pct // 100
    articles.read(order.rows(0, at, at + 1))
    return {"seconds": time.perf_counter() - start}


# ---- running ----


def call(python: str, *words: str) -> dict[str, float]:
    """Run a part of this script on the core in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, __file__, "--inner", *words], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "no output")
    return json.loads(done.stdout.strip().splitlines()[-1])


def inner(words: list[str]) -> None:
    os.sched_setaffinity(0, {CORE})
    what, *rest = words
    result: dict[str, float] = {}
    if what == "prepare":
        PREPARE[rest[0]](Path(rest[1]))
    elif what == "read":
        result = measure_reader(rest[0], Path(rest[1]), int(rest[2]))
    elif what == "index":
        result = measure_index(Path(rest[0]))
    elif what == "memory":
        result = measure_memory(Path(rest[0]), int(rest[1]))
    elif what == "first":
        result = measure_first(Path(rest[0]), int(rest[1]), int(rest[2]))
    print(json.dumps(result))


def make_environment(name: str, folder: Path) -> str:
    """Return the Python of a peer's environment, made where it is not there yet."""
    python = folder / name / "bin" / "python"
    if (folder / name / "complete").exists():
        return str(python)
    peer, needed = PEERS[name]
    subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    for words in (["--no-deps", *peer], needed):
        done = subprocess.run([*pip, *words], capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip failed"]
            raise RuntimeError(f"cannot be installed: {lines[-1]}")
    (folder / name / "complete").touch()
    return str(python)


def spread(values: list[float], digits: int = 0) -> str:
    middle = statistics.median(values)
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def bench_reading(work: Path, environments: Path, articles: int, repeats: int) -> None:
    with (work / "articles.jsonl").open("w") as file:
        for article in make_articles(articles, BODY_WORDS):
            file.write(json.dumps(article, separators=(",", ":")) + "\n")
    size = (work / "articles.jsonl").stat().st_size / articles
    print(f"\n{articles:,} articles of {size:,.0f} bytes, shuffled, 0 workers, one core")
    pythons = {"ours": sys.executable}
    for peer in ("ours", *PEERS):
        try:
            if peer != "ours":
                pythons[peer] = make_environment(peer, environments)
            call(pythons[peer], "prepare", peer, str(work))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            pythons.pop(peer, None)
            print(f"  {peer}: not measured: {error}")
    rates: dict[str, list[float]] = {}
    seen: dict[str, set] = {}
    for repeat in range(repeats):
        for name, (environment, _) in READERS.items():
            if environment in pythons:
                found = call(pythons[environment], "read", name, str(work), str(2 * repeat))
                rates.setdefault(name, []).append(found["rate"])
                seen.setdefault(name, set()).add((found["samples"], found["characters"]))
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["ours"], values, strict=True)]
        whole = "" if seen[name] == seen["ours"] else "  (NOT the same samples)"
        print(
            f"  {name:<28}{spread(values):>32} samples/s   ours over it {spread(ratios, 2)}{whole}"
        )


def bench_index(work: Path, articles: int, repeats: int) -> None:
    print(f"\nindexing {articles:,} samples of tars made elsewhere, one core")
    lines = [
        json.dumps(article, separators=(",", ":")).encode()
        for article in make_articles(articles, BODY_WORDS)
    ]
    for name, text in (("one JSON member", False), ("title and body members", True)):
        folder = work / f"foreign-{int(text)}"
        write_foreign(folder, lines, text)
        rates = [call(sys.executable, "index", str(folder))["rate"] for _ in range(repeats)]
        print(f"  {name:<28}{spread(rates):>32} samples/s")
        shutil.rmtree(folder)


def bench_large(work: Path, repeats: int) -> None:
    peaks: dict[int, list[float]] = {}
    for count in (SMALL, LARGE):
        folder = work / f"large-{count}"
        write_large(folder, count)
        peaks[count] = [
            call(sys.executable, "memory", str(folder), str(seed))["peak_mib"]
            for seed in range(repeats)
        ]
        print(f"\n{count:,} articles: peak memory of a reader {spread(peaks[count], 1)} MiB")
        for share_pct in (1, 90):
            times = [
                call(sys.executable, "first", str(folder), str(seed), str(share_pct))["seconds"]
                for seed in range(repeats)
            ]
            print(f"  to the first sample at {share_pct}% of an epoch: {spread(times, 3)} s")
        shutil.rmtree(folder)
    ratios = [large / small for small, large in zip(peaks[SMALL], peaks[LARGE], strict=True)]
    print(f"peak memory at {LARGE:,} over {SMALL:,}: {spread(ratios, 3)}")


def main() -> None:
    """Run what is asked for and print the numbers."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("--parts", default="read,index,large", help="read, index, large")
    parser.add_argument("--articles", type=int, default=NUM_ARTICLES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder for the data (default: a temporary one)")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        work = Path(temporary)
        environments = arguments.environments or work / "environments"
        environments.mkdir(parents=True, exist_ok=True)
        parts = arguments.parts.split(",")
        if "read" in parts:
            bench_reading(work, environments, arguments.articles, arguments.repeats)
        if "index" in parts:
            bench_index(work, arguments.articles, arguments.repeats)
        if "large" in parts:
            bench_large(work, arguments.repeats)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inner"]:
        inner(sys.argv[2:])
    else:
        main()
