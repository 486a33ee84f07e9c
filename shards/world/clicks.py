"""Draw impressions: what was shown to whom, and the clicks, from users' true interests."""

from dataclasses import dataclass

import numpy as np

from shards.world.articles import (
    DEV_START,
    TEST_DAYS,
    TEST_START,
    TRAIN,
    TRAIN_START,
    Attributes,
    article_id,
)
from shards.world.pools import Pool
from shards.world.settings import BLOCK_IMPRESSIONS, WorldSettings
from shards.world.shape import candidate_counts, click_counts
from shards.world.streams import random_stream
from shards.world.users import Users, fill_distinct

_DAY = 86_400
_TIMES = {
    "train": (TRAIN_START, DEV_START),
    "dev": (DEV_START + _DAY // 4, DEV_START + _DAY),
    "test": (TEST_START + _DAY // 4, TEST_START + TEST_DAYS * _DAY),
}
"""Time range of each part's impressions; dev and test start at six in the morning of their first
day, after the news of the day."""


@dataclass(frozen=True)
class Impressions:
    """A run of impressions.

    Attributes:
        clicked: bool[K]; propensity: float64[K], the log-odds from which the clicks were drawn;
        clicked: bool[K]; propensity: float64[K], the log-odds that the clicks were drawn from;
        offsets: int64[n + 1].
    """

    users: np.ndarray
    times: np.ndarray
    candidates: np.ndarray
    clicked: np.ndarray
    propensity: np.ndarray
    offsets: np.ndarray


def train_pool(users: Users, about: Attributes) -> Pool:
    """Return the articles shown in the training days."""
    return Pool(np.flatnonzero(about.era == TRAIN), about, users.topics)


def draw_impressions(
    users: Users,
    bound: int,
    block: int,
    count: int,
    warm: Pool,
    cold: Pool | None,
    part: str | None = None,
) -> Impressions:
    """Draw one block of impressions.

    Clicks are drawn without replacement with weights exp(log-odds) (Plackett-Luce, by Gumbel
    noise), so ranking by the log-odds has the highest expected AUC of all rankings.

    Args:
        users: All users.
        bound: Number of articles in the click log.
        block: Number of the block; the draws depend on it and on the settings alone.
        count: Number of impressions in the block.
        warm: Articles of the training days; for dev, those that training showed.
        cold: Articles of the dev day or the test days; None draws training impressions.
        part: ``train``, ``dev`` or ``test``; None takes ``train`` without ``cold``, else ``dev``.

    Returns:
        The impressions.
    """
    settings = users.settings
    part = part or ("train" if cold is None else "dev")
    rng = random_stream(settings, part, block)
    who = users.draw(rng.random(count))
    times = rng.integers(*_TIMES[part], count)
    wanted = candidate_counts(rng, count, settings.candidates_mean, settings.max_candidates)

    def draw(owners: np.ndarray, any_news: bool) -> np.ndarray:
        share, until = 0.0 if any_news else settings.interest_share, times[owners]
        chosen = users.choose(rng, who[owners], warm, until, share)
        if cold is not None:
            fresh = users.choose(rng, who[owners], cold, until, share)
            chosen = np.where(rng.random(len(owners)) < settings.cold_share, fresh, chosen)
        return chosen

    owners, candidates = fill_distinct(wanted, draw, bound)
    shuffled = np.argsort(owners + rng.random(len(owners)))
    candidates = candidates[shuffled]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))])
    propensity = _propensity(users, who[owners], candidates)
    clicked = _draw_clicks(settings, rng, propensity, owners, offsets)
    return Impressions(who, times, candidates, clicked, propensity, offsets)


def _propensity(users: Users, who: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    settings = users.settings
    liked = users.affinity(who, candidates)
    return (liked + settings.quality_strength * users.quality[candidates]) / settings.noise


def _draw_clicks(
    settings: WorldSettings,
    rng: np.random.Generator,
    propensity: np.ndarray,
    owners: np.ndarray,
    offsets: np.ndarray,
) -> np.ndarray:
    """Return bool[K]: at least one click and one other candidate in every impression."""
    clicks = click_counts(rng, np.diff(offsets), settings.multi_click_share)
    drawn = propensity + rng.gumbel(size=len(propensity))
    order = np.lexsort((-drawn, owners))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - offsets[owners]
    return rank < clicks[owners]


class BehaviorsWriter:
    """Writes impressions as lines of MIND's ``behaviors.tsv``."""

    def __init__(self, histories: np.ndarray, offsets: np.ndarray, num_articles: int) -> None:
        """Prepare the strings of all articles, so that lines are joined, not formatted.

        Args:
            histories: int32[K] articles of the histories.
            offsets: int64[U + 1] of the users.
            num_articles: Articles in the click log.
        """
        self._histories, self._offsets = histories, offsets
        ids = [article_id(row) for row in range(num_articles)]
        self._ids = np.array(ids, dtype=object)
        self._labelled = np.array([f"{i}-0" for i in ids] + [f"{i}-1" for i in ids], dtype=object)

    def lines(self, block: Impressions, first_id: int, labelled: bool = True) -> bytes:
        """Return the lines of a run of impressions.

        Args:
            block: The impressions.
            first_id: Impression id of the first impression.
            labelled: Whether the lines have labels.
        """
        if labelled:
            shown = self._labelled[block.candidates + block.clicked * len(self._ids)].tolist()
        else:
            shown = self._ids[block.candidates].tolist()
        edges = block.offsets.tolist()
        result = []
        for i, (user, time) in enumerate(
            zip(block.users.tolist(), block.times.tolist(), strict=True)
        ):
            read = self._histories[self._offsets[user] : self._offsets[user + 1]]
            columns = (
                str(first_id + i),
                f"U{user + 1}",
                mind_time(time),
                " ".join(self._ids[read].tolist()),
                " ".join(shown[edges[i] : edges[i + 1]]),
            )
            result.append("\t".join(columns) + "\n")
        return "".join(result).encode()


def mind_time(seconds: int) -> str:
    """Return a time of the log in MIND's form: ``11/15/2019 9:05:58 AM``."""
    day, rest = divmod(seconds - TRAIN_START, _DAY)
    hour, rest = divmod(rest, 3600)
    half = "AM" if hour < 12 else "PM"
    return f"11/{9 + day:02d}/2019 {(hour + 11) % 12 + 1}:{rest // 60:02d}:{rest % 60:02d} {half}"


def num_impression_blocks(impressions: int) -> int:
    """Return the number of blocks that this many impressions make."""
    return -(-impressions // BLOCK_IMPRESSIONS)
