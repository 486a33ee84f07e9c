"""Frozen layers' states of a set at a URL: the column lies in the node's cache, beside what was
fetched, and eviction leaves it alone."""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.elsewhere import serve
from helpers.world import TinyWorld, make_world

from shards import cache
from shards.cache import CacheSettings
from shards.clicks import ClickColumn
from shards.columns import list_columns
from shards.reader import ShardSet
from shards.tokens import TokenColumn
from trainer.config.schema import TrainConfig
from trainer.engine.distributed import start
from trainer.engine.trainer import Trainer
from trainer.frozen.column import FROZEN
from trainer.frozen.fill import StateFiller
from trainer.tasks.build import build

SETTINGS: dict[str, Any] = {
    "model__frozen_states": "float32",
    "model__backbone__num_layers": 3,
    "model__backbone__hidden_size": 64,
    "model__trainable_layers": 1,
    "run__max_steps": 4,
    "run__epochs": 100.0,
    "run__log_every": 1,
    "run__copies__rule": "none",
    "data__workers": 0,
    "validation__every": 2,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    world = make_world(tmp_path_factory.mktemp("frozen-elsewhere"), num_articles=40)
    make_world(world.folder / "held-out", num_articles=40, num_impressions=50)
    return world


def config_of(world: TinyWorld, run: str, base: str | Path, **changes: Any) -> TrainConfig:
    """A finetuning run over the sets in a folder, or at a URL."""
    given = SETTINGS | {"data__articles": f"{base}/articles", "run__seed": 4} | changes
    given["validation__clicks"] = f"{base}/held-out/clicks"
    given["run__dir"] = str(world.folder / "runs" / run)
    config = world.config("finetune", **given)
    return replace(config, data=replace(config.data, clicks=f"{base}/clicks"))


def train(config: TrainConfig) -> list[dict[str, float]]:
    """Losses, norms and validations of a run, step by step."""
    with start(config) as distributed:
        task = build(config)
        trainer = Trainer(config, task.module, task.data, task.export, distributed, task.validation)
        lines = (trainer.fit() / "metrics.jsonl").read_text().splitlines()
    kinds = ("train/", "valid/")
    found = [{k: v for k, v in json.loads(x).items() if k.startswith(kinds)} for x in lines]
    assert len(found) == 4 and "valid/auc" in found[-1]
    return found


@pytest.fixture(scope="module")
def here(world: TinyWorld) -> tuple[list[dict[str, float]], Path]:
    """What a run finds over the sets in a folder, and its column, which is then moved away."""
    found = train(config_of(world, "here", world.folder))
    (info,) = list_columns(world.articles, FROZEN)
    return found, info.folder.rename(world.folder / info.folder.name)


@pytest.fixture(params=["file", "http"])
def base(request: pytest.FixtureRequest, world: TinyWorld) -> Iterator[str]:
    """The URL of the folder that the sets are in."""
    if request.param == "file":
        yield world.folder.as_uri()
        return
    with serve(world.folder) as server:
        yield server.url


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of texts of every cell that is computed."""
    counted: list[int] = []
    compute = StateFiller._tensors

    def tensors(self: StateFiller, rows: Any, count: Any) -> Any:
        counted.append(len(rows))
        return compute(self, rows, count)

    monkeypatch.setattr(StateFiller, "_tensors", tensors)
    return counted


def column_of(folder: Path) -> dict[str, bytes]:
    """The files of the only column of frozen states in a cache, by name."""
    (info,) = folder.glob(f"articles*/*/columns/{FROZEN}-*/column.json")
    return {path.name: path.read_bytes() for path in info.parent.iterdir() if path.is_file()}


def test_a_run_fills_the_cache_and_the_next_one_reads_it(
    world: TinyWorld, here: Any, base: str, tmp_path: Path, computed: list[int]
) -> None:
    """In a cache that holds what is fetched and not the column, which it does not count."""
    expected, column = here
    measured = CacheSettings(str(tmp_path / "measured"))
    for name in ("articles", "clicks", "held-out/clicks"):
        there = ShardSet.open(f"{base}/{name}", cache=measured)
        opened = TokenColumn.open(there) if name == "articles" else ClickColumn.open(there)
    assert there.mirror is not None and opened is not None
    room = there.mirror.cache.total()
    held = sum(path.stat().st_size for path in column.iterdir())
    assert held > room
    folder, name = tmp_path / "cache", base.partition(":")[0]
    more = {"data__cache_dir": str(folder), "data__cache_gib": (room + 100) / 2**30}
    assert train(config_of(world, f"{name}-first", base, **more)) == expected
    assert computed == [16, 16, 8]
    states = column_of(folder)
    assert train(config_of(world, f"{name}-second", base, **more)) == expected
    assert computed == [16, 16, 8] and column_of(folder) == states
    cells = {p.name: p.read_bytes() for p in column.iterdir() if p.suffix == ".safetensors"}
    assert {n: b for n, b in states.items() if n.endswith(".safetensors")} == cells
    assert list_columns(world.articles, FROZEN) == []  # nothing is written where the set lies


def test_eviction_takes_what_was_fetched_and_leaves_the_column(
    world: TinyWorld, here: Any, tmp_path: Path, computed: list[int], monkeypatch: Any
) -> None:
    """Another set needs the room, and no run has the first one open any more."""
    monkeypatch.setattr(cache, "_caches", {})
    base, folder = world.folder.as_uri(), tmp_path / "cache"
    more = {"data__cache_dir": str(folder)}
    train(config_of(world, "evicted", base, **more))
    states = column_of(folder)
    held = cache.open_cache(CacheSettings(str(folder))).total()
    cache._caches.clear()
    gc.collect()  # as at the end of a process: the sets are no longer in use
    other = ShardSet.open(
        f"{base}/held-out/articles", cache=CacheSettings(str(folder), max_bytes=held)
    )
    for row in range(0, 40, 16):
        other.payload(row)
    assert other.mirror is not None and other.mirror.cache.total() <= held
    left = {p.parent.parent.name for p in folder.glob("articles*/*/columns/*/fetched/*@*")}
    assert not any(name.startswith("tokens") for name in left), "nothing was evicted"
    assert column_of(folder) == states
    assert train(config_of(world, "after", base, **more)) == here[0]
    assert computed == [16, 16, 8]


def test_a_column_that_lies_with_the_set_is_fetched_and_not_made(
    world: TinyWorld, here: Any, tmp_path: Path, computed: list[int]
) -> None:
    expected, column = here
    folder = tmp_path / "cache"
    lent = column.rename(world.articles.columns_dir / column.name)
    try:
        more = {"data__cache_dir": str(folder)}
        assert train(config_of(world, "lent", world.folder.as_uri(), **more)) == expected
    finally:
        lent.rename(column)
    assert computed == [] and not list(folder.rglob(f"{FROZEN}-*/*.safetensors"))
