"""``tnr shards columns``: what is listed beside a set, what is removed, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from helpers.sets import make_articles, make_tokens

from shards.column_folders import choose, column_folders, remove_folder
from shards.columns import ColumnWriter
from shards.errors import ColumnError, UsageError
from shards.reader import ShardSet
from trainer.cli.main import main
from trainer.frozen.column import FROZEN
from trainer.teacher_server.kinds.clicks import ExactNews

EXACT = ExactNews.name


def write(articles: ShardSet, name: str, cells: int, seed: int = 0) -> Path:
    """A column of which some cells are filled."""
    made_from = {"seed": seed, "weights_sha256": "ab" * 32, "layers": [1, 2], "part": {"a": 1}}
    writer = ColumnWriter(articles, name, made_from)
    for shard in range(cells):
        writer.write(shard, {"x": np.zeros(articles.shards[shard].samples, dtype=np.float32)})
    return writer.folder


@pytest.fixture
def articles(tmp_path: Path) -> ShardSet:
    return make_articles(tmp_path / "set", 40, 16)


def test_columns_are_listed_with_their_bytes_cells_and_origin(
    articles: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokens = make_tokens(articles, tmp_path / "tokenizer").folder
    whole, part = write(articles, FROZEN, 3), write(articles, FROZEN, 1, seed=1)
    damaged = write(articles, "teacher-text", 1)
    (damaged / "column.json").write_text("{")
    assert main(["shards", "columns", str(articles.path)]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    said = {line.split()[0]: line.split("  ")[1] for line in lines if line[0] != " "}
    folders = (tokens, whole, part, damaged)
    assert list(said) == sorted(folder.name for folder in folders)
    size = sum(path.stat().st_size for path in whole.iterdir())
    assert said[whole.name] == f"{size / 1e6:.1f} MB, 3 of 3 cells"
    assert "  seed 0, weights_sha256 abababababab, layers 1 2" in lines
    assert said[part.name].endswith(" MB, 1 of 3 cells, maybe being filled")
    assert said[damaged.name].endswith(" MB, no readable column.json")
    everything = [path for path in articles.columns_dir.rglob("*") if path.is_file()]
    assert total == f"4 columns, {sum(p.stat().st_size for p in everything) / 1e6:.1f} MB"
    found = {column.folder: column for column in column_folders(articles)}
    assert found[whole].bytes == size
    # The tokenizer's folder within the column counts.
    assert found[tokens].bytes == sum(p.stat().st_size for p in tokens.rglob("*") if p.is_file())


def test_only_what_is_named_is_removed_and_only_when_that_is_said(
    articles: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokens = make_tokens(articles, tmp_path / "tokenizer").folder
    frozen = [write(articles, FROZEN, 3, seed) for seed in (0, 1)]
    teacher = write(articles, "teacher-text", 3)
    command = ["shards", "columns", str(articles.path), "--remove"]
    assert main([*command, FROZEN, teacher.name]) == 0
    assert "3 columns, 0.0 MB; remove them with --yes" in capsys.readouterr().out
    assert all(folder.is_dir() for folder in (*frozen, teacher))
    assert main([*command, FROZEN, "--yes"]) == 0
    said = capsys.readouterr().out
    assert said.count("removed ") == 2 and "--yes" not in said
    assert sorted(articles.columns_dir.iterdir()) == sorted([teacher, tokens])
    assert main([*command, tokens.name, "--yes"]) == 0
    assert sorted(articles.columns_dir.iterdir()) == [teacher]
    assert main(["shards", "columns", str(articles.path), "--yes"]) == 2


def test_what_is_not_removed(articles: ShardSet, tmp_path: Path):
    make_tokens(articles, tmp_path / "tokenizer")
    part, working = write(articles, FROZEN, 2), write(articles, EXACT, 3)
    outside = tmp_path / "outside"
    outside.mkdir()
    link = articles.columns_dir / "teacher-news-0123456789ab"
    link.symlink_to(outside)

    def refused(name: str) -> str:
        with pytest.raises(UsageError) as error:
            choose(column_folders(articles), [name])
        return str(error.value)

    assert "name a column by its folder" in refused("tokens")
    for name in ("../outside", str(outside), ".", "..", "", "teacher-text"):
        assert "there is no such column; existing columns: " in refused(name)
    for kind, folder in ((FROZEN, part), (EXACT, working)):
        assert f"{folder.name} has " in refused(kind) and "maybe being filled" in refused(kind)
        assert [c.folder for c in choose(column_folders(articles), [folder.name])] == [folder]
    for folder in (link, outside):
        with pytest.raises(ColumnError, match="is a link or lies outside"):
            remove_folder(articles, folder)
    assert outside.is_dir() and link.is_symlink()


def test_columns_of_another_version_and_leftovers_of_a_removal_can_go(
    articles: ShardSet, tmp_path: Path
):
    other = make_articles(tmp_path / "other", 39, 16)
    other.columns_dir.mkdir()
    former = write(articles, "clicks", 3)
    former = former.rename(other.columns_dir / former.name)
    leftover = write(other, FROZEN, 1).rename(other.columns_dir / ".removing-frozen-states-1-2")
    hidden, old = column_folders(other)
    assert (hidden.folder, old.folder) == (leftover, former)
    assert (hidden.state(), old.state()) == (
        "no readable column.json",
        "made from another version of the set",
    )
    for column in choose([hidden, old], [leftover.name, former.name]):
        assert remove_folder(other, column.folder)
        assert not remove_folder(other, column.folder)
    assert list(other.columns_dir.iterdir()) == []


def test_what_a_killed_removal_left_goes_with_the_next(
    articles: ShardSet, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    gone, other = write(articles, FROZEN, 3), write(articles, EXACT, 3)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shards.column_folders.shutil.rmtree", killed)
        remove_folder(articles, gone)
    (left,) = articles.columns_dir.glob(".removing-*")
    assert len(list(left.iterdir())) == 7
    assert not remove_folder(articles, gone)
    assert list(articles.columns_dir.iterdir()) == [other]
