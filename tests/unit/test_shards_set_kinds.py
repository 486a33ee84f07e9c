"""A kind of shard set is one class and its line in the registry: a toy kind goes through it all."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers.elsewhere import serve
from helpers.sets import make_articles, make_impressions
from helpers.tnr import ROOT

from shards import set_kinds
from shards.cache import CacheSettings
from shards.cli_build import _print_result
from shards.errors import DamageError, DataError
from shards.intake import BuildResult
from shards.manifest import Manifest, read_manifest
from shards.plot import plot_stats
from shards.reader import ShardSet
from shards.set_kinds.base import Row, SampleCounter, SetKind
from shards.stats import compute_stats
from shards.verify import verify_set
from shards.writer import ShardWriter
from trainer.cli.main import main


@dataclass(frozen=True)
class Basket:
    user: str
    items: list[Row]


class BasketCounter(SampleCounter):
    names = ("items", "users")
    settings: ClassVar = {"items": "data.basket_length"}
    not_drawn = ("users",)

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[int, ...]] = []

    def measure(self, sample: dict[str, Any]) -> None:
        self.lengths["items"].append(len(sample["items"]))
        self.lengths["users"].append(1)
        self.categories[sample["user"]] += 1
        self._seen.append(tuple(sample["items"]))

    def duplicates(self) -> dict[str, int]:
        return {"same items": len(self._seen) - len(set(self._seen))}

    def facts(self) -> dict[str, Any]:
        return {"largest basket": max(self.lengths["items"])}


class Baskets(SetKind):
    name = "baskets"
    prefix = "cart"
    sample = Basket
    row_fields = ("items",)
    counter = BasketCounter

    @classmethod
    def problem(cls, sample: Basket, manifest: Manifest) -> str | None:
        return None if sample.items else f"of {manifest.source['shop']} has no items"

    @classmethod
    def notes(cls, result: BuildResult) -> Iterator[str]:
        yield f"{result.shard_set.num_rows} baskets were filled"


SAMPLES = [{"user": f"U{row % 3}", "items": [row % 5, (row + 1) % 5]} for row in range(10)]


@pytest.fixture
def news(tmp_path: Path) -> ShardSet:
    return make_articles(tmp_path / "news", 5)


@pytest.fixture
def baskets(tmp_path: Path, news: ShardSet, monkeypatch: pytest.MonkeyPatch) -> ShardSet:
    monkeypatch.setitem(set_kinds.KINDS, "baskets", f"{__name__}:Baskets")
    return write(tmp_path / "baskets", SAMPLES, news)


def write(folder: Path, samples: list[dict[str, Any]], news: ShardSet, **options: Any) -> ShardSet:
    options |= {"source": {"shop": "ours"}, "articles_fingerprint": news.fingerprint}
    with ShardWriter(folder, "baskets", samples_per_shard=4, **options) as writer:
        for sample in samples:
            writer.add(sample)
        return writer.finish()


def told(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    assert main(["shards", *map(str, words)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_a_set_of_a_new_kind_is_written_read_and_replaced(
    baskets: ShardSet, news: ShardSet
) -> None:
    made = ShardSet.open(baskets.path, kind="baskets")
    assert list(made) == SAMPLES and made.kind == read_manifest(made.path).kind == "baskets"
    names = {path.name for path in made.path.glob("*.tar")}
    assert names == {"cart-000000.tar", "cart-000001.tar", "cart-000002.tar"}
    with pytest.raises(DataError, match="holds baskets, expected a set of impressions"):
        ShardSet.open(made.path, kind="impressions")
    (made.path / "crawl-000000.tar").touch()
    assert list(write(made.path, SAMPLES[:2], news, force=True)) == SAMPLES[:2]
    assert {p.name for p in made.path.glob("*.tar")} == {"cart-000000.tar", "crawl-000000.tar"}


@pytest.mark.parametrize(
    ("row", "sample", "said"),
    [
        (
            5,
            {"user": "U1"},
            "cart-000001.tar, offset .*: sample 1 is not a sample of a set of baskets",
        ),
        (
            5,
            {"user": "U1", "items": [-1]},
            r"sample 1 is not a sample of .*: .* at `\$\.items\[0\]`",
        ),
        (9, {"user": "U1", "items": []}, "cart-000002.tar, .*: sample 1 of ours has no items"),
    ],
)
def test_verify_checks_samples_by_their_kind(
    baskets: ShardSet, news: ShardSet, row: int, sample: dict[str, Any], said: str
) -> None:
    assert verify_set(baskets.path).ok
    samples = [sample if at == row else former for at, former in enumerate(SAMPLES)]
    found = verify_set(write(baskets.path, samples, news, force=True).path).problems
    assert len(found) == 1 and re.search(said, str(found[0])), found


def test_verify_finds_damage_and_rows_that_the_article_set_lacks(
    baskets: ShardSet, news: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "10 samples, all intact" in told(capsys, "verify", baskets.path, news.path)
    beyond = [*SAMPLES, {"user": "U9", "items": [1, 5]}]
    write(baskets.path, beyond, news, force=True)
    assert "all intact" in told(capsys, "verify", baskets.path)
    said = told(capsys, "verify", baskets.path, news.path, code=1)
    assert "its baskets name row 5 of the article set, which has 5 rows" in said
    tar = baskets.path / "cart-000001.tar"
    data = bytearray(tar.read_bytes())
    data[520] ^= 1
    tar.write_bytes(data)
    assert "cart-000001.tar, offset 512: " in told(capsys, "verify", baskets.path, code=1)


def test_stats_count_as_the_kind_says(
    baskets: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = told(capsys, "stats", baskets.path)
    assert re.search(r"10 baskets in 3 shards.*\n(.*\n)*items +2\.00", table)
    assert re.search(r"facts\n +largest basket +2\n", table)
    assert re.search(r"baskets that repeat an earlier one\n +same items +5 \(50%\)", table)
    assert "items (data.basket_length)" in table and "in words" not in table
    assert "\n\nitems\n" in table and "\n\nusers\n" not in table
    stats = json.loads(told(capsys, "stats", baskets.path, "--json"))
    assert stats["fields"] == {"user": 10, "items": 10}
    assert stats["categories"] == {"U0": 4, "U1": 3, "U2": 3}
    plot_stats(compute_stats(baskets), tmp_path / "baskets.png")
    assert (tmp_path / "baskets.png").stat().st_size


def test_orders_are_of_samples_unless_the_kind_says_otherwise(
    baskets: ShardSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("stats", baskets.path, "--order")
    assert "10 baskets in 3 shards; global batch 32" in told(capsys, *words)
    assert [each["units"] for each in json.loads(told(capsys, *words, "--json"))] == [10, 10, 10]
    said = told(capsys, *words, "--user-block", 2, code=2)
    assert f"--user-block is for click logs; {baskets.path} holds baskets" in said
    monkeypatch.setattr(Baskets, "orders", classmethod(lambda *_: ([{"mine": 1}], "my table")))
    assert told(capsys, *words) == "my table\n"
    assert json.loads(told(capsys, *words, "--json")) == [{"mine": 1}]


def test_a_sample_is_shown_with_titles(
    baskets: ShardSet, news: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads(told(capsys, "show", baskets.path, 3)) == SAMPLES[3]
    shown = json.loads(told(capsys, "show", baskets.path, 3, "--articles", news.path))
    assert shown == {"user": "U0", "items": [news.sample(row)["title"] for row in (3, 4)]}
    words = ("show", news.path, 0, "--articles", news.path)
    assert "--articles is for impressions and baskets; " in told(capsys, *words, code=2)
    others = make_articles(tmp_path / "others", 6)
    words = ("show", baskets.path, 3, "--articles", others.path)
    assert "is not the article set that" in told(capsys, *words, code=2)


def test_a_row_that_the_article_set_lacks_is_not_shown(
    news: ShardSet, baskets: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    beyond = [SAMPLES[0] | {"items": [news.num_rows]}]
    made = write(baskets.path, beyond, news, force=True)
    assert main(["shards", "show", str(made.path), "0", "--articles", str(news.path)]) == 1
    said = capsys.readouterr().err
    assert f"items names row {news.num_rows} of {news.path}, which has {news.num_rows} rows" in said


def test_the_end_of_a_build_says_what_the_kind_notes(
    baskets: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    _print_result(BuildResult(baskets, already_built=False))
    assert "  note: 10 baskets were filled\n" in capsys.readouterr().out


def test_a_set_elsewhere_is_read_through_its_mirror(baskets: ShardSet, tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        cache = CacheSettings(str(tmp_path / "cache"))
        there = ShardSet.open(f"{server.url}/baskets", kind="baskets", cache=cache)
        assert there.read(np.arange(10)) == SAMPLES and there.fingerprint == baskets.fingerprint
        assert compute_stats(there).facts == {"largest basket": 2}


def test_a_kind_that_nobody_registered_is_refused(
    baskets: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(set_kinds.KINDS, "baskets")
    said = "kind 'baskets' is unknown; known are articles, impressions"
    with pytest.raises(DamageError, match=rf"manifest\.json: {said}"):
        ShardSet.open(baskets.path)
    with pytest.raises(ValueError, match=said):
        ShardWriter(baskets.path.with_name("more"), "baskets")


def test_a_build_does_not_replace_a_set_of_an_unknown_kind(
    baskets: ShardSet, news: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in baskets.path.iterdir())
    monkeypatch.delitem(set_kinds.KINDS, "baskets")
    said = "holds a set of kind 'baskets', which is unknown"
    with pytest.raises(DataError, match=said), ShardWriter(baskets.path, "articles", force=True):
        pass
    assert sorted(path.name for path in baskets.path.iterdir()) == before


def test_kinds_are_registered_by_their_names_and_have_prefixes_of_their_own() -> None:
    kinds = set_kinds.all_kinds()
    assert [kind.name for kind in kinds] == list(set_kinds.KINDS)
    assert len({kind.prefix for kind in kinds}) == len(kinds)
    assert all(re.fullmatch("[a-z][a-z0-9]*", kind.prefix) for kind in kinds)


def test_opening_a_set_imports_no_kind(news: ShardSet) -> None:
    clicks = make_impressions(news.path.with_name("clicks"), news, 4)
    program = (
        "import sys\nfrom shards.reader import ShardSet\n"
        f"for path in {[str(news.path), str(clicks.path)]!r}: ShardSet.open(path).sample(0)\n"
        "print([name for name in sys.modules if name.startswith('shards.set_kinds.')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"
