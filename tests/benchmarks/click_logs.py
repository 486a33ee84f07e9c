"""What the finetuning benchmarks share: click logs as shard sets, and runs over them.

``log`` is the real one of ``TNR_TEST_DATA`` (short titles, short histories). ``mind`` is made up
with what is published of MIND: lengths of histories (the last 50 clicks are kept) and numbers of
candidates as :mod:`shards.world.shape` draws them, 101,527 news, titles of 11.5 words. One click an
impression, every impression of another user.

How popular MIND's news are is not published, and decides how many titles of a batch are the same.
Popularity is drawn as in :mod:`shards.world.shape`, anew for histories and for candidates, so that
what is popular in one is not in the other; within one history or impression nothing comes twice.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from doj import data_folder, tnr

from shards.world.shape import EMPTY_HISTORIES, POPULARITY_SKEW, candidate_counts, fill_lengths

NUM_NEWS = 101_527
SKEW = POPULARITY_SKEW
TITLE_TOKENS = 30
HISTORY = 50


def real_log(folder: Path, encoder: Path) -> tuple[Path, Path]:
    """(article set with tokens, impression set) of the click log of ``TNR_TEST_DATA``."""
    log = data_folder() / "clicks-wikispeedia" / "train.zip"
    return _build(folder, log, log, encoder)


def mind_like_log(folder: Path, encoder: Path, impressions: int, skew: float) -> tuple[Path, Path]:
    """The same of a made-up log with MIND's lengths; only the news that occur in it are written."""
    source = folder / "mind"
    source.mkdir(parents=True)
    rng = np.random.default_rng(1)
    empty = rng.random(impressions) < EMPTY_HISTORIES
    histories = fill_lengths(rng, empty, longest=801).clip(max=HISTORY)
    candidates = candidate_counts(rng, impressions, most=300)
    weights = [np.cumsum(np.exp(skew * rng.standard_normal(NUM_NEWS))) for _ in range(2)]
    shares = [sums / sums[-1] for sums in weights]  # log-normal popularity
    used: set[int] = set()
    with (source / "behaviors.tsv").open("w") as file:
        for number, (past, shown) in enumerate(zip(histories, candidates, strict=True)):
            read = _distinct(rng, shares[0], past)
            offered = _distinct(rng, shares[1], shown)
            used.update(read, offered)
            history = " ".join(f"N{news}" for news in read)
            labels = " ".join(f"N{news}-{int(place == 0)}" for place, news in enumerate(offered))
            time = f"11/{9 + number % 6}/2019 8:00:00 AM"
            file.write(f"{number}\tU{number}\t{time}\t{history}\t{labels}\n")
    titles = _titles(rng, len(used))
    with (source / "news.tsv").open("w") as file:
        for news, title in zip(sorted(used), titles, strict=True):
            file.write(f"N{news}\tnews\tnews\t{title}\t\t\t[]\t[]\n")
    return _build(folder, source, source, encoder)


def settings(log: tuple[Path, Path], encoder: Path, **dotted: Any) -> list[str]:
    """Overrides of a finetuning run over a log; ``__`` stands for the dot in a name."""
    articles, clicks = log
    values: dict[str, Any] = {
        "data.articles": articles,
        "data.clicks": clicks,
        "model.backbone.name": encoder,
        "run.dir": "-",
    }
    values |= {name.replace("__", "."): value for name, value in dotted.items()}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _build(folder: Path, news: Path, behaviors: Path, encoder: Path) -> tuple[Path, Path]:
    articles, clicks = folder / "articles", folder / "clicks"
    build = ("shards", "build", "--max-refused", "0.01")
    tnr(*build, "--articles", str(news), "--keep-duplicates", "--out", str(articles))
    tnr(*build, "--clicks", str(behaviors), "--article-set", str(articles), "--out", str(clicks))
    sizes = ("--title-tokens", str(TITLE_TOKENS), "--body-tokens", "16")
    tnr("shards", "tokenize", str(articles), "--tokenizer", str(encoder), *sizes)
    return articles, clicks


def _distinct(rng: np.random.Generator, cumulative: np.ndarray, count: int) -> list[int]:
    """``count`` different articles by popularity, in the order drawn."""
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn[int(np.searchsorted(cumulative, rng.random())) % len(cumulative)] = None
    return list(drawn)


def _titles(rng: np.random.Generator, count: int) -> list[str]:
    """Runs of words of news titles, 11.5 of them on average as in MIND's."""
    source = data_folder() / "news-doj" / "doj.jsonl.gz"
    with gzip.open(source, "rt") as lines:
        words = [word for line in lines for word in json.loads(line)["title"].split()]
    sizes = np.rint(rng.normal(11.5, 3.2, count)).astype(int).clip(3, 25)
    starts = rng.integers(0, len(words) - 25, count)
    return [
        " ".join(words[start : start + size]) for start, size in zip(starts, sizes, strict=True)
    ]
