"""The synthesized world: same bytes, lengths, formats, clicks and the truth about them."""

import dataclasses
import gzip
import json
import multiprocessing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from shards.build import build_articles, build_impressions
from shards.errors import UsageError
from shards.world.articles import attributes_of_first
from shards.world.clicks import draw_impressions, mind_time, train_pool
from shards.world.pools import Pool
from shards.world.settings import WorldSettings
from shards.world.synthesize import synthesize
from shards.world.texts import texts, title_words
from shards.world.topics import FIRST_ENTITY, SUBTOPIC, Topics
from shards.world.truth import per_impression
from shards.world.users import Users
from shards.world.vocabulary import make_words, zipf_table

SMALL = WorldSettings(
    articles=1500,
    users=300,
    train_impressions=3000,
    dev_impressions=1500,
    seed=3,
    body_words=60,
    history_mean=10,
    candidates_mean=12,
)
FILES = (
    "articles.jsonl",
    "train/news.tsv",
    "dev/news.tsv",
    "train/behaviors.tsv",
    "dev/behaviors.tsv",
)


def contents(folder: Path, names: tuple[str, ...] = FILES) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def behaviors(path: Path) -> list[tuple[str, list[str], list[str], np.ndarray]]:
    """User, history, candidates and labels of each line of a ``behaviors.tsv``."""
    result = []
    for number, line in enumerate(path.read_text().splitlines()):
        impression, user, _, history, shown = line.split("\t")
        assert impression == str(number + 1)
        pairs = [each.split("-") for each in shown.split(" ")]
        labels = np.array([int(label) for _, label in pairs])
        result.append((user, history.split(), [news for news, _ in pairs], labels))
    return result


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("world")
    return out, synthesize(SMALL, out)


def test_same_seed_gives_same_bytes_for_any_chunks_and_processes(world, tmp_path):
    one, chunked, spawned = world[0], tmp_path / "chunked", tmp_path / "spawned"
    synthesize(SMALL, chunked, chunk_blocks=1)
    synthesize(SMALL, spawned, processes=2, chunk_blocks=2)
    assert contents(chunked) == contents(one)
    assert contents(spawned) == contents(one)
    truth = (one / "truth.json").read_bytes()
    assert (chunked / "truth.json").read_bytes() == truth
    assert (spawned / "truth.json").read_bytes() == truth
    assert not multiprocessing.active_children()


def test_another_seed_gives_another_world(world, tmp_path):
    synthesize(dataclasses.replace(SMALL, seed=4), tmp_path)
    ours, theirs = contents(world[0]), contents(tmp_path)
    assert all(ours[name] != theirs[name] for name in FILES)


def test_compressed_articles_are_the_same_articles(world, tmp_path):
    synthesize(SMALL, tmp_path, compress=True)
    packed = (tmp_path / "articles.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == (world[0] / "articles.jsonl").read_bytes()


def test_lengths_have_the_means_asked_for(tmp_path):
    settings = WorldSettings(
        articles=6000, users=3000, train_impressions=2000, dev_impressions=500, candidates_mean=37.4
    )
    truth = synthesize(settings, tmp_path)
    titles, bodies = [], []
    with (tmp_path / "articles.jsonl").open() as file:
        for line in file:
            article = json.loads(line)
            titles.append(len(article["title"].split()))
            bodies.append(len(article["body"].split()))
    assert np.mean(titles) == pytest.approx(11.84, rel=0.01)
    assert np.mean(bodies) == pytest.approx(511.43, rel=0.03)
    assert np.median(bodies) < 0.9 * np.mean(bodies)  # a long tail, as real bodies have
    assert truth["title_words_mean"] == pytest.approx(np.mean(titles), abs=1e-9)
    assert truth["body_words_mean"] == pytest.approx(np.mean(bodies), abs=1e-9)
    assert truth["history_mean"] == pytest.approx(32.9, rel=0.05)
    assert truth["empty_histories"] == pytest.approx(0.022, abs=0.008)
    assert truth["train"]["candidates_mean"] == pytest.approx(37.4, rel=0.05)
    assert truth["train"]["multi_click_share"] == pytest.approx(0.28, abs=0.03)
    assert truth["dev"]["cold_share"] == pytest.approx(0.53, abs=0.03)


def test_truth_agrees_with_the_files(world):
    out, truth = world
    for part in ("train", "dev"):
        log = behaviors(out / part / "behaviors.tsv")
        labels = [labels for *_, labels in log]
        assert len(log) == truth[part]["impressions"]
        assert sum(map(sum, labels)) == truth[part]["clicks"]
        assert np.mean([len(each) for each in labels]) == truth[part]["candidates_mean"]
    seen: set[str] = set()
    for _, history, candidates, _ in behaviors(out / "train/behaviors.tsv"):
        seen.update(history, candidates)
    shown = [news for *_, news, _ in behaviors(out / "dev/behaviors.tsv") for news in news]
    cold = np.mean([news not in seen for news in shown])
    assert cold == pytest.approx(truth["dev"]["cold_share"], abs=1e-12)
    assert truth["files"] == {name: (out / name).stat().st_size for name in FILES}


def test_every_impression_has_a_click_a_non_click_and_different_candidates(world):
    histories: dict[str, list[str]] = {}
    for part in ("train", "dev"):
        news = {line.split("\t")[0] for line in (world[0] / part / "news.tsv").open()}
        for user, history, candidates, labels in behaviors(world[0] / part / "behaviors.tsv"):
            assert 0 < labels.sum() < len(labels)
            assert len(set(candidates)) == len(candidates)
            assert len(set(history)) == len(history)
            assert news.issuperset(candidates) and news.issuperset(history)
            assert not set(history) & set(candidates)
            assert histories.setdefault(user, history) == history  # a frozen snapshot


def test_news_is_shown_only_after_it_appeared_and_read_before_the_log(world):
    times = {}
    with (world[0] / "articles.jsonl").open() as file:
        for line in file:
            article = json.loads(line)
            times[article["id"]] = article["time"]
    for part, days in (("train", range(9, 15)), ("dev", (15,))):
        for line in (world[0] / part / "behaviors.tsv").read_text().splitlines():
            _, _, when, history, shown = line.split("\t")
            date, clock, half = when.split(" ")
            month, day, year = date.split("/")
            hour, minute, second = clock.split(":")
            assert (month, year) == ("11", "2019") and int(day) in days
            hours = int(hour) % 12 + 12 * (half == "PM")
            now = f"2019-11-{day}T{hours:02d}:{minute}:{second}+00:00"
            assert all(times[pair.split("-")[0]] <= now for pair in shown.split(" "))
            assert all(times[news] < "2019-11-09" for news in history.split())


def test_times_are_written_as_in_mind():
    nine = int(np.datetime64("2019-11-15T09:05:58").astype(np.int64))
    assert mind_time(nine) == "11/15/2019 9:05:58 AM"
    assert mind_time(nine - 9 * 3600) == "11/15/2019 12:05:58 AM"
    assert mind_time(nine + 3 * 3600) == "11/15/2019 12:05:58 PM"
    assert mind_time(nine + 14 * 3600 - 6 * 86400) == "11/9/2019 11:05:58 PM".replace("/9/", "/09/")


def test_metrics_equal_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 40, 200)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    scores = rng.integers(0, 30, offsets[-1]).astype(float)
    clicked = np.zeros(len(scores), dtype=bool)
    for start, size in zip(offsets, sizes, strict=False):
        clicked[start + rng.permutation(size)[: rng.integers(1, size)]] = True
    found = per_impression(scores, clicked, offsets)
    for i, (start, stop) in enumerate(pairwise(offsets)):
        score, label = scores[start:stop], clicked[start:stop].astype(int)
        assert found["auc"][i] == pytest.approx(roc_auc_score(label, score))
        order = np.argsort(score, kind="stable")[::-1]
        ranks = 1 + np.flatnonzero(label[order])
        assert found["mrr"][i] == pytest.approx((1 / ranks).mean())
        apart = np.empty(len(order))
        apart[order] = -np.arange(len(order))
        for depth in (5, 10):
            expected = ndcg_score([label], [apart], k=depth)
            assert found[f"ndcg{depth}"][i] == pytest.approx(expected)


def test_best_auc_is_the_auc_of_the_true_propensities(world):
    """Rebuilds affinity by hand from interests and articles, and ranks the written log by it."""
    out, truth = world
    settings = SMALL.resolve()
    topics = Topics(settings)
    about = attributes_of_first(topics, settings.click_articles)
    users = Users(topics, about)
    aucs = []
    for name, _, candidates, labels in behaviors(out / "dev/behaviors.tsv"):
        user, scores = int(name[1:]) - 1, []
        for news in candidates:
            row = int(news[1:]) - 1
            event = about.event[row]
            subtopic = topics.event_subtopic[event]
            score = settings.quality_strength * about.quality[row]
            for k in range(settings.interests):
                weight = float(users.subtopic_weights[user, k])
                if users.subtopics[user, k] == subtopic:
                    score += settings.subtopic_strength * weight
                if users.subtopics[user, k] // settings.subcategories == (
                    subtopic // settings.subcategories
                ):
                    score += settings.category_strength * weight
                share = float(users.entity_weights[user, k])
                hits = int((topics.event_entities[event] == users.entities[user, k]).sum())
                score += settings.entity_strength * share * hits
            scores.append(score)
        aucs.append(roc_auc_score(labels, scores))
    assert truth["best_auc"] == pytest.approx(np.mean(aucs), abs=1e-6)


def test_ceiling_lies_above_what_can_be_read_above_popularity_above_random(world):
    _, truth = world
    assert 0.80 < truth["best_auc"] < 0.92
    assert truth["best_auc"] > truth["text_auc"] > truth["history_auc"] > truth["popularity_auc"]
    assert truth["popularity_auc"] > truth["random_auc"] + 0.005
    assert truth["random_auc"] == pytest.approx(0.5, abs=0.03)  # standard error 0.01
    for metric in ("mrr", "ndcg5", "ndcg10"):
        assert truth[f"best_{metric}"] > truth[f"random_{metric}"] + 0.1


def test_more_noise_lowers_the_ceiling(world, tmp_path):
    noisy = synthesize(dataclasses.replace(SMALL, noise=4.0), tmp_path)
    assert noisy["best_auc"] < world[1]["best_auc"] - 0.1


def test_no_ranking_tried_beats_the_propensities():
    settings = dataclasses.replace(SMALL, users=2000, train_impressions=1).resolve()
    topics = Topics(settings)
    about = attributes_of_first(topics, settings.click_articles)
    users = Users(topics, about)
    drawn = draw_impressions(
        users, settings.click_articles, 0, 4000, train_pool(users, about), None
    )

    def auc(scores: np.ndarray) -> float:
        return float(per_impression(scores, drawn.clicked, drawn.offsets)["auc"].mean())

    best = auc(drawn.propensity)
    noise = np.random.default_rng(0).normal(size=len(drawn.propensity))
    for scale in (0.3, 1.0, 3.0):
        assert auc(drawn.propensity + scale * noise) < best
    quality = about.quality[drawn.candidates]
    assert auc(drawn.propensity - settings.quality_strength * quality) < best
    assert auc(drawn.propensity + quality) < best


def test_titles_and_bodies_share_concepts_but_not_words(world):
    topics = Topics(SMALL.resolve())
    about = attributes_of_first(topics, SMALL.articles)
    firsts = topics.first_forms(about.event)
    number = {str(word): i for i, word in enumerate(topics.words[: topics.num_words])}
    repeated, told, titles = [], [], []
    with (world[0] / "articles.jsonl").open() as file:
        for row, line in enumerate(file):
            article = json.loads(line)
            title = [number[word] for word in article["title"].split()]
            body = [number[word.rstrip(".")] for word in article["body"].split()]
            titles.append(title)
            for role, forms in (
                (SUBTOPIC, SMALL.subtopic_forms),
                (FIRST_ENTITY, SMALL.entity_forms),
            ):
                own = range(firsts[row, role], firsts[row, role] + forms)
                in_title = {word for word in title if word in own}
                in_body = {word for word in body if word in own}
                assert in_title, "the title tells subtopic and entity"
                told.append(bool(in_body))
                if role == SUBTOPIC:
                    repeated.append(len(in_title & in_body) / len(in_title))
    assert np.mean(told) > 0.95
    assert np.mean(repeated) < 0.7
    same_story: dict[int, list[set[int]]] = {}
    for row, title in enumerate(titles):
        own = range(firsts[row, SUBTOPIC], firsts[row, SUBTOPIC] + SMALL.subtopic_forms)
        same_story.setdefault(int(about.event[row]), []).append({w for w in title if w in own})
    pairs = [(a, b) for group in same_story.values() for a, b in pairwise(group)]
    assert len(pairs) > 200
    assert np.mean([not a & b for a, b in pairs]) > 0.4  # the same story in other words


def test_a_larger_corpus_begins_with_the_same_titles_when_its_concepts_are_fixed():
    fixed = dataclasses.replace(SMALL, entities=80, events=300, background_words=600)
    found = []
    for count in (700, 1500):
        topics = Topics(dataclasses.replace(fixed, articles=count, click_articles=600).resolve())
        about = attributes_of_first(topics, 600)
        words, offsets = title_words(topics, 0, topics.first_forms(about.event[:512]))
        found.append(texts(topics, words, offsets))
    assert found[0] == found[1]


def test_words_are_unique_speakable_and_frequent_ones_short():
    words = make_words(np.random.default_rng(1), 5000)
    assert len(set(words)) == len(words) == 5000
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert np.mean([len(w) for w in words[:200]]) < np.mean([len(w) for w in words[-2000:]]) - 1


def test_zipf_table_follows_the_law_and_keeps_the_tail():
    counts = np.bincount(zipf_table(1000))
    assert len(counts) == 1000 and counts.min() >= 1
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.02)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.02)


def test_build_reads_everything_and_refuses_nothing(world, tmp_path):
    build_articles([world[0] / "articles.jsonl"], tmp_path / "news")
    built = build_impressions([world[0] / "dev"], tmp_path / "news", tmp_path / "dev")
    news = json.loads((tmp_path / "news/manifest.json").read_text())
    dev = json.loads((tmp_path / "dev/manifest.json").read_text())
    assert built is not None
    assert sum(shard["samples"] for shard in news["shards"]) == SMALL.articles
    assert sum(shard["samples"] for shard in dev["shards"]) == SMALL.dev_impressions
    assert not any(news["refused"].values()) and not any(dev["refused"].values())


def test_news_files_have_minds_columns_and_true_entities(world):
    rows = [line.rstrip("\n").split("\t") for line in (world[0] / "dev/news.tsv").open()]
    assert {len(row) for row in rows} == {8}
    for row in rows:
        for entity in json.loads(row[6]):
            (offset,), (form,) = entity["OccurrenceOffsets"], entity["SurfaceForms"]
            assert row[3][offset:].split(" ")[0] == form
    early = {line.split("\t")[0] for line in (world[0] / "train/news.tsv").open()}
    assert early < {row[0] for row in rows}


def test_a_pool_needs_two_articles():
    topics = Topics(SMALL.resolve())
    about = attributes_of_first(topics, 512)
    with pytest.raises(UsageError, match="click-articles"):
        Pool(np.array([3]), about, topics)
