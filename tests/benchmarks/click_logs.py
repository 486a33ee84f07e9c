"""What the finetuning benchmarks share: click logs as shard sets, and runs over them.

``log`` is the real one of ``TNR_TEST_DATA`` (short titles, short histories). ``mind`` is made up
with the sizes that are published of MIND: histories of median 19, mean 32.9, 95th percentile 110
and at most 801 clicks, 2.2% of them empty; candidates of median 24, mean 37.4, 95th percentile 119
and at most 300; 101,527 news with titles of 11.5 words. Both lengths are lognormal through the
median and the 95th percentile, which meets the means.

How popular MIND's news are is not published, and decides how many titles of a batch are the same.
Here the article of rank r is drawn with weight r^-0.7 (the first is 1% of all clicks), histories
and candidates over ranks of their own, so that what is popular in one is not in the other. News
sites are usually more skewed (r^-1 would make the first 8%): a real log should share more titles.
"""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from doj import data_folder, tnr

NUM_NEWS = 101_527
SKEW = 0.7
TITLE_TOKENS = 30


def real_log(folder: Path, encoder: Path) -> tuple[Path, Path]:
    """(article set with tokens, impression set) of the click log of ``TNR_TEST_DATA``."""
    log = data_folder() / "clicks-wikispeedia" / "train.zip"
    return _build(folder, log, log, encoder)


def mind_like_log(folder: Path, encoder: Path, impressions: int, skew: float) -> tuple[Path, Path]:
    """The same of a made-up log with MIND's lengths; only the news that occur in it are written."""
    source = folder / "mind"
    source.mkdir(parents=True)
    rng = np.random.default_rng(1)
    histories = _lognormal(rng, impressions, 19, 110, (1, 801))
    histories[rng.random(impressions) < 0.022] = 0
    candidates = _lognormal(rng, impressions, 24, 119, (2, 300))
    weights = np.arange(1, NUM_NEWS + 1) ** -skew
    popular = np.cumsum(weights / weights.sum())
    ranks = [rng.permutation(NUM_NEWS) for _ in range(2)]
    used: set[int] = set()
    with (source / "behaviors.tsv").open("w") as file:
        for number, (past, shown) in enumerate(zip(histories, candidates, strict=True)):
            read = ranks[0][_distinct(rng, popular, past)].tolist()
            offered = ranks[1][_distinct(rng, popular, shown)].tolist()
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


def _lognormal(
    rng: np.random.Generator, count: int, median: float, p95: float, ends: tuple[int, int]
) -> np.ndarray:
    """Whole numbers from a lognormal distribution with this median and 95th percentile."""
    sigma = np.log(p95 / median) / 1.6449
    return np.rint(rng.lognormal(np.log(median), sigma, count)).astype(int).clip(*ends)


def _distinct(rng: np.random.Generator, cumulative: np.ndarray, count: int) -> np.ndarray:
    """``count`` different ranks by popularity, in the order drawn (of a few very long histories
    somewhat fewer)."""
    drawn = np.searchsorted(cumulative, rng.random(2 * count + 16)).clip(max=len(cumulative) - 1)
    _, first = np.unique(drawn, return_index=True)
    return drawn[np.sort(first)][:count]


def _titles(rng: np.random.Generator, count: int) -> list[str]:
    """Runs of words of news texts, 11.5 of them on average as in MIND's titles."""
    source = data_folder() / "news-doj" / "doj.jsonl.gz"
    with gzip.open(source, "rt") as lines:
        words = [
            word
            for line in itertools.islice(lines, 2000)
            for word in json.loads(line)["body"].split()
        ]
    sizes = np.rint(rng.normal(11.5, 3.2, count)).astype(int).clip(3, 25)
    starts = rng.integers(0, len(words) - 25, count)
    return [
        " ".join(words[start : start + size]) for start, size in zip(starts, sizes, strict=True)
    ]
