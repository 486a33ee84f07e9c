"""F7: clocks of nodes differ, so that the times of files say nothing."""

import ast
import os
import random
import shutil
from pathlib import Path

from helpers.checkpoints import make_store
from helpers.sets import make_articles
from helpers.tnr import ROOT
from helpers.world import TINY_MODEL, make_world

from shards.manifest import MANIFEST_NAME
from shards.mirror import _keep_manifest, _known
from trainer.cli.main import main

PACKAGES = ("shards", "trainer", "launchers")
TIMES = {
    "st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "st_atime_ns", "st_birthtime",
    "getmtime", "getctime", "getatime",
}  # fmt: skip
ALLOWED = {"shards/cache.py": 1}
"""Which file leaves a full cache first: any order gives the same bytes, one may take longer."""

SETTINGS = {
    "run.copies.rule": "none",
    "run.checkpoint_every": 1,
    "run.keep_checkpoints": 3,
    "run.epochs": 10,
}


def scramble(folder: Path, seed: int) -> None:
    """Give every file and folder a time within 20 years of now, backwards and forwards."""
    rng = random.Random(seed)
    for path in [folder, *sorted(folder.rglob("*"))]:
        when = 1.6e9 + rng.uniform(-3e8, 3e8)
        os.utime(path, (when, when), follow_symlinks=False)


def test_f7_no_decision_is_made_by_the_times_of_files() -> None:
    found: dict[str, int] = {}
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            if name in TIMES or (isinstance(node, ast.alias) and node.name in TIMES):
                relative = str(path.relative_to(ROOT))
                found[relative] = found.get(relative, 0) + 1
    assert found == ALLOWED


def test_f7_the_newest_checkpoint_is_known_by_its_name(tmp_path: Path) -> None:
    store = make_store(tmp_path / "checkpoints", print, 5, 10, 15)
    for place, step in enumerate((15, 10, 5)):  # the oldest seems the newest
        os.utime(store.path(step), (1e9 + place, 1e9 + place))
    newest = store.find()
    assert newest is not None and newest.step == 15
    scramble(tmp_path, 0)
    newest = store.find()
    assert newest is not None and newest.step == 15


def test_f7_without_its_server_a_set_is_the_one_that_came_over_last(tmp_path: Path) -> None:
    home = tmp_path / "cache"
    for place, count in enumerate((5, 20, 10)):
        made = make_articles(tmp_path / str(count), count)
        folder, _ = _keep_manifest(home, (made.path / MANIFEST_NAME).read_bytes())
        os.utime(folder / MANIFEST_NAME, (2e9 - place, 2e9 - place))  # the last seems the oldest
    assert _known(home) == folder
    (home / "latest").unlink()  # of a cache of an earlier version: nobody knows which is newest
    assert _known(home) is None
    for other in set(home.iterdir()) - {folder}:
        shutil.rmtree(other)
    assert _known(home) == folder


def test_f7_a_run_goes_on_the_same_whatever_the_times_of_its_files(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", num_articles=20)
    words = ["train", "post_train", "--data.articles", str(world.articles.path)]
    for name, value in (TINY_MODEL | SETTINGS).items():
        words += [f"--{name}", str(value)]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*words, "--run.dir", str(first), "--run.max_steps", "2"]) == 0
    shutil.copytree(first, second)
    scramble(second, 1)
    assert main([*words, "--run.dir", str(first), "--run.max_steps", "4"]) == 0
    scramble(world.folder, 2)
    assert main([*words, "--run.dir", str(second), "--run.max_steps", "4"]) == 0
    weights = [next((run / "export").rglob("*.safetensors")) for run in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
