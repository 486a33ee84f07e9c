"""Teachers of a small world, what is asked to be filled for them, and the files that come of it."""

from pathlib import Path

from helpers.sets import impression_samples, make_impressions
from helpers.world import TinyWorld, make_world

from trainer.export.folder import Export
from trainer.teacher_server.cells import Cell, Target
from trainer.teacher_server.request import FillRequest, list_cells, signals_of
from trainer.teacher_server.teachers import open_teachers


def silent(line: str) -> None:
    """Say nothing."""


def world_of_returning_users(tmp_path: Path) -> TinyWorld:
    """Two users' histories come again and again, all over the log."""
    world = make_world(tmp_path, num_impressions=4)
    samples = impression_samples(60, world.articles.num_rows)
    for row, sample in enumerate(samples):
        if row % 3:
            sample["history"] = [1, 2, 3] if row % 3 == 1 else [4]
    impressions = make_impressions(tmp_path / "log", world.articles, samples=samples)
    return TinyWorld(world.folder, world.articles, world.tokens, impressions)


def request(world: TinyWorld, stage: int, **options: object) -> FillRequest:
    """What is to be filled for a stage."""
    impressions = world.impressions if stage == 2 else None
    return FillRequest(articles=world.articles, impressions=impressions, **options)


def teachers_of(world: TinyWorld, stage: int, count: int = 2) -> list[str]:
    """Folders of teachers of a stage."""
    task = "post_train" if stage == 1 else "finetune"
    return [world.teacher(task, seed) for seed in range(count)]


def columns_of(world: TinyWorld) -> dict[str, bytes]:
    """Every file of every teacher column, by name."""
    return {
        str(path.relative_to(shard_set.path.parent)): path.read_bytes()
        for shard_set in (world.articles, world.impressions)
        for path in sorted(shard_set.columns_dir.glob("teacher-*/*"))
    }


def forget(world: TinyWorld) -> None:
    """Remove every teacher column."""
    for shard_set in (world.articles, world.impressions):
        for path in sorted(shard_set.columns_dir.glob("teacher-*/*")):
            path.unlink()


def words(world: TinyWorld, action: str, stage: int, teachers: list[str]) -> list[str]:
    """A command line of ``tnr teachers``."""
    clicks = ["--clicks", str(world.impressions.path)] if stage == 2 else []
    sets = ["--articles", str(world.articles.path), *clicks]
    return ["teachers", action, "--stage", str(stage), *sets, "--models", *teachers]


def targets(teacher: Export, asked: FillRequest) -> list[Target]:
    """The columns of a teacher, in the order in which they are filled."""
    return [signal.target for signal in signals_of(teacher, asked)]


def cells_of(teachers: list[str], asked: FillRequest) -> list[Cell]:
    """The cells of all columns of teachers."""
    opened = open_teachers(teachers)
    return list_cells([signal for teacher in opened for signal in signals_of(teacher, asked)])
