"""Write a world to a folder: corpus, click log, and finally the truth about them."""

import dataclasses
import functools
import gzip
import itertools
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import DamageError, UsageError
from shards.files import (
    atomic_file,
    clear_leftovers,
    fingerprint,
    read_json,
    write_json_atomic,
)
from shards.pool import Workers
from shards.progress import Progress
from shards.world.articles import attributes_of_first, block_size, num_blocks
from shards.world.ceiling import ClickTruth
from shards.world.clicks import (
    BehaviorsWriter,
    draw_impressions,
    num_impression_blocks,
    train_pool,
)
from shards.world.pools import Pool
from shards.world.settings import BLOCK_IMPRESSIONS, FORMAT, WorldSettings
from shards.world.texts import WrittenBlock, write_block
from shards.world.topics import Topics
from shards.world.users import Users, draw_histories, history_pool

TRUTH = "truth.json"
_MARK = ".synthesize.json"
_COMPRESSION = 5


@dataclasses.dataclass(frozen=True)
class _Mark:
    """The part that is read of the mark of an unfinished world."""

    fingerprint: str


@dataclasses.dataclass(frozen=True)
class _Sizes:
    articles: int


@dataclasses.dataclass(frozen=True)
class _Log:
    impressions: int
    clicks: int
    candidates_mean: float


@dataclasses.dataclass(frozen=True)
class _DevLog(_Log):
    cold_share: float


@dataclasses.dataclass(frozen=True)
class _Truth(_Mark):
    """The part of ``truth.json`` that is read and shown."""

    files: dict[str, int]
    settings: _Sizes
    train: _Log
    dev: _DevLog
    title_words_mean: float
    body_words_mean: float
    best_auc: float
    history_auc: float
    popularity_auc: float
    random_auc: float


def synthesize(
    settings: WorldSettings,
    out: str | Path,
    *,
    compress: bool = False,
    processes: int = 1,
    chunk_blocks: int = 4,
    force: bool = False,
) -> dict[str, Any]:
    """Make a world and return the content of its ``truth.json``.

    Memory depends on words, users and the click log's articles, not on the corpus. The files depend
    on the settings alone, neither on ``processes`` nor on ``chunk_blocks``. A folder that already
    holds this world is left unchanged; an interrupted attempt at this world is written again.

    Args:
        settings: The world.
        out: Folder; made if it does not exist.
        compress: Write ``articles.jsonl.gz`` instead of ``articles.jsonl``.
        processes: Processes that write articles.
        chunk_blocks: Number of blocks of articles that a process writes at a time.
        force: Replace another world in the folder.

    Returns:
        The content of ``truth.json``.

    Raises:
        UsageError: A setting is out of range, or the folder holds other files.
    """
    settings = settings.resolve()
    out = Path(out)
    articles = "articles.jsonl.gz" if compress else "articles.jsonl"
    plan = {"format": FORMAT, "settings": settings.to_dict(), "articles_file": articles}
    mark = fingerprint(plan)
    done = _finished(out, mark)
    if done is not None and not force:
        return done
    _claim(out, mark, force, settings)

    lengths = _write_articles(settings, out, articles, processes, chunk_blocks)
    clicks = _write_clicks(_topics(settings), out)
    files = {name: (out / name).stat().st_size for name in (articles, *_written(settings))}
    truth = {
        "fingerprint": mark,
        **plan,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **lengths,
        **clicks,
        "files": files,
    }
    write_json_atomic(out / TRUTH, truth)
    (out / _MARK).unlink(missing_ok=True)
    return truth


def _parts(settings: WorldSettings) -> tuple[str, ...]:
    return ("train", "dev", "test") if settings.test_impressions else ("train", "dev")


def _written(settings: WorldSettings) -> list[str]:
    names = ("news.tsv", "behaviors.tsv")
    return [f"{part}/{name}" for name in names for part in _parts(settings)]


def _finished(out: Path, mark: str) -> dict[str, Any] | None:
    """Return the truth of the folder if it is complete and of this world."""
    if not (out / TRUTH).exists():
        return None
    try:
        truth = read_json(out / TRUTH, dict[str, Any])
        stated = read_json(out / TRUTH, _Truth)
    except DamageError:
        return None  # another world's, or to be made again
    if stated.fingerprint != mark:
        return None
    for name, size in stated.files.items():
        if not (out / name).is_file() or (out / name).stat().st_size != size:
            return None
    return truth


def _claim(out: Path, mark: str, force: bool, settings: WorldSettings) -> None:
    """Mark the folder as this world's, after checking that it holds no other files.

    Raises:
        UsageError: The folder holds files of another command or of another world.
    """
    names = ("articles.jsonl", "articles.jsonl.gz", *_written(settings), TRUTH)
    there = [name for name in names if (out / name).exists()]
    ours = any(_fingerprint_of(out / name) == mark for name in (_MARK, TRUTH))
    if there and not ours and not force:
        raise UsageError(
            f"{out} already holds {', '.join(there)}, not of this world (other options, or other "
            "files); name another folder with --out, or replace them with --force"
        )
    for folder in (out, *(out / part for part in _parts(settings))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from error
        clear_leftovers(folder)
    # Remove the truth first, so that an interrupted replacement never looks complete.
    for name in (TRUTH, "articles.jsonl", "articles.jsonl.gz"):
        (out / name).unlink(missing_ok=True)
    write_json_atomic(out / _MARK, {"fingerprint": mark})


def _fingerprint_of(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return read_json(path, _Mark).fingerprint
    except DamageError:
        return None


@functools.lru_cache(maxsize=1)
def _topics(settings: WorldSettings) -> Topics:
    """Build the topics once per process."""
    return Topics(settings)


def _chunk(blocks: range, settings: WorldSettings, compress: bool) -> list[WrittenBlock]:
    topics = _topics(settings)
    result = []
    for block in blocks:
        written = write_block(topics, block)
        if compress:
            # One gzip member per block, so that the bytes do not depend on the division of work.
            packed = gzip.compress(written.lines, _COMPRESSION, mtime=0)
            written = dataclasses.replace(written, lines=packed)
        result.append(written)
    return result


def _write_articles(
    settings: WorldSettings, out: Path, name: str, processes: int, chunk_blocks: int
) -> dict[str, Any]:
    total = num_blocks(settings)
    step = max(1, chunk_blocks)
    chunks = [range(first, min(first + step, total)) for first in range(0, total, step)]
    title_words = body_words = 0
    with ExitStack() as stack:
        parts = _parts(settings)
        names = (name, *(f"{part}/news.tsv" for part in parts))
        files = [stack.enter_context(atomic_file(out / each)) for each in names]
        bar = stack.enter_context(Progress(settings.articles, "writing articles", "articles"))
        workers = stack.enter_context(Workers(processes))
        job = functools.partial(_chunk, settings=settings, compress=name.endswith(".gz"))
        blocks = itertools.chain.from_iterable(workers.map(job, chunks))
        for number, block in enumerate(blocks):
            texts = (block.lines, *(block.news[part] for part in parts))
            for file, text in zip(files, texts, strict=True):
                file.write(text)
            title_words += block.title_words
            body_words += block.body_words
            bar.update(block_size(settings, number))
    return {
        "title_words_mean": title_words / settings.articles,
        "body_words_mean": body_words / settings.articles,
    }


def _write_clicks(topics: Topics, out: Path) -> dict[str, Any]:
    settings = topics.settings
    count = settings.click_articles
    about = attributes_of_first(topics, count)
    users = Users(topics, about)
    histories, offsets = draw_histories(users, about, history_pool(users, about))
    writer = BehaviorsWriter(histories, offsets, count)
    truth = ClickTruth(users, histories, offsets, count)

    def write(part: str, total: int, warm: Pool, cold: Pool | None) -> None:
        with (
            atomic_file(out / part / "behaviors.tsv") as file,
            Progress(total, f"drawing {part} clicks", "impressions") as bar,
        ):
            for block in range(num_impression_blocks(total)):
                first = block * BLOCK_IMPRESSIONS
                size = min(BLOCK_IMPRESSIONS, total - first)
                drawn = draw_impressions(users, count, block, size, warm, cold, part)
                file.write(writer.lines(drawn, first + 1, labelled=part != "test"))
                if part != "test":
                    truth.add(drawn, dev=part == "dev")
                bar.update(size)

    write("train", settings.train_impressions, train_pool(users, about), None)
    write("dev", settings.dev_impressions, *truth.later_pools(about))
    if settings.test_impressions:
        write("test", settings.test_impressions, *truth.later_pools(about, test=True))
    return truth.summary()
