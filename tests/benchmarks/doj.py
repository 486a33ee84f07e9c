"""What the training benchmarks share: press releases as an article set, and runs over them."""

import gzip
import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENCODER = "all-MiniLM-L6-v2"


def encoder_folder(name: str = ENCODER) -> Path:
    """A pre-trained encoder in ``TNR_TEST_ENCODERS``."""
    return _folder_from("TNR_TEST_ENCODERS") / name


def data_folder() -> Path:
    """The real data: ``TNR_TEST_DATA``."""
    return _folder_from("TNR_TEST_DATA")


def _folder_from(variable: str) -> Path:
    if variable not in os.environ:
        raise SystemExit(f"{variable} is not set: it names a folder that this measures with")
    return Path(os.environ[variable])


def make_articles(folder: Path, count: int) -> Path:
    """An article set of the first press releases of ``TNR_TEST_DATA``, with a token column."""
    source = data_folder() / "news-doj" / "doj.jsonl.gz"
    with gzip.open(source, "rt") as lines, (folder / "doj.jsonl").open("w") as file:
        file.writelines(itertools.islice(lines, count))
    articles = folder / "articles"
    tnr("shards", "build", "--articles", str(folder / "doj.jsonl"), "--out", str(articles))
    tnr("shards", "tokenize", str(articles), "--tokenizer", str(encoder_folder()))
    return articles


def tnr(*words: str) -> None:
    """Run a command of ours to its end, silently unless it fails."""
    command = [sys.executable, "-m", "trainer.cli.main", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def settings(articles: Path, **dotted: Any) -> list[str]:
    """Overrides of a post-training run over the articles; ``__`` stands for the dot in a name."""
    values = {"data.articles": articles, "model.backbone.name": encoder_folder(), "run.dir": "-"}
    values |= {name.replace("__", "."): value for name, value in dotted.items()}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def in_turns(sides: dict[str, Callable[[int], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every side: in each round all of them once, one after the other; one round first
    that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            took = side(repeat)
            if repeat:
                seconds[name].append(took)
    return seconds


def spread(values: list[float], digits: int = 2) -> str:
    """The median and the extremes."""
    middle = statistics.median(values)
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """How many times faster the second side was, round by round."""
    return [a / b for a, b in zip(slow, fast, strict=True)]
