"""`tnr train --dry-run`: the resolved run, its arithmetic and its order, without training."""

import re

import pytest
from helpers.world import TINY_MODEL, TinyWorld, make_world

from shards.stream import Stream
from trainer.cli.main import main
from trainer.config import validate
from trainer.config.flat import setting_types
from trainer.tasks.build import open_data
from trainer.tasks.registry import TASKS, open_sources, task_named


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("dry"), num_articles=60)


def dry_run(world: TinyWorld, capsys, task: str, **more: object) -> str:
    given = TINY_MODEL | {"data.articles": world.articles.path, "run.dir": world.folder / "run"}
    given |= {key.replace("__", "."): value for key, value in more.items()}
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["train", task, *words, "--run.copies.rule", "none", "--dry-run"]) == 0
    assert not (world.folder / "run").exists()
    return capsys.readouterr().out


def test_dry_run_says_how_the_order_mixes_and_what_a_window_takes(world, capsys) -> None:
    out = dry_run(world, capsys, "post_train", data__window_shards=2)
    assert "# 60 units x 1 epochs -> 8 optimizer steps" in out
    assert "# order: windows of 2 of 4 shards (30 of 60 units, 0.0 MiB); of a uniform" in out
    assert "samples travel" in out and "a global batch of 8 reads from" in out


def test_dry_run_warns_of_a_model_that_this_machine_cannot_hold(world, capsys, monkeypatch):
    monkeypatch.setattr(validate.os, "sysconf", lambda _: 64)  # 64 pages of 64 bytes
    out = dry_run(world, capsys, "post_train")
    assert "# WARNING: the model takes at least 0 GiB, and this machine has 0 GiB" in out


def test_dry_run_of_a_click_task_counts_clicks(world, capsys) -> None:
    out = dry_run(world, capsys, "finetune", data__clicks=world.impressions.path)
    assert "windows of 4 of 4 shards" in out
    assert "# titles: a micro-batch of 8 clicks of" in out and "ranks" not in out.split("# ")[-2]


def test_dry_run_says_what_blocks_of_a_users_clicks_and_ranks_share(
    world, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = {"data__clicks": world.impressions.path, "run__micro_batch": 4}
    plain = dry_run(world, capsys, "finetune", **given)
    blocks = dry_run(world, capsys, "finetune", data__user_block=4, **given)
    said = re.compile(
        r"# titles: .* of ([\d.]+) users names \d+, (\d+) .* 2 ranks .* (\d+)% of them"
    )
    (users, titles, over_ranks), (fewer_users, fewer_titles, _) = (
        map(float, said.search(out).groups()) for out in (plain, blocks)
    )
    assert fewer_users < users and fewer_titles < titles and over_ranks < 100


def test_negatives_from_the_window_stay_in_it(world) -> None:
    settings = {"data__negatives_from": "window", "data__window_shards": 1}
    data = open_data(config := world.config("post_train", **settings), open_sources(config))
    corpus = open_data(config := world.config("post_train"), open_sources(config))
    batch = next(Stream(data.order, 12))
    assert data.collate(batch).batch.title_index.shape == (12, 4)
    own = data.order.windows_of(0, batch.rows)
    negatives = data.negatives.of(batch.rows, batch.epochs)
    assert (data.order.windows_of(0, negatives) == own[:, None]).all()
    negatives = corpus.negatives.of(batch.rows, batch.epochs)
    assert (data.order.windows_of(0, negatives) != own[:, None]).any()


def test_windows_too_small_for_the_negatives_are_found_before_training(world, capsys) -> None:
    words = ["--data.articles", str(world.articles.path), "--run.dir", str(world.folder / "run")]
    words += ["--data.negatives_from", "window", "--data.window_shards", "1"]
    words += ["--data.max_title_tokens", "10", "--data.max_body_tokens", "20"]
    assert main(["train", "post_train", *words, "--data.num_negatives", "20", "--dry-run"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "one may hold 12; change data.window_shards" in said


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "post_train"],
        ["preflight", "post_train"],
        ["launch", "slurm", "post_train"],
        ["teachers", "logits", "post_train_distill"],
    ],
    ids=lambda words: words[0],
)
def test_help_stands_anywhere(words: list[str], capsys) -> None:
    shown = []
    for given in ([*words, "--help"], [*words, "--run.seed", "3", "-h"], [*words[:-1], "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(given)
        assert not stop.value.code
        shown.append(capsys.readouterr())
    assert shown[0] == shown[1] == shown[2] and not shown[0].err
    assert "usage: tnr" in shown[0].out
    assert "'tnr train RECIPE --help' lists them" in " ".join(shown[0].out.split())


def test_settings_are_listed_as_recipes_and_the_readme_write_them(capsys) -> None:
    assert main(["train", "--settings"]) == 0
    out = capsys.readouterr().out
    assert "--model.pooling_mask" in out and "--model.pooling-mask" not in out
    assert all(f"usage: tnr train {name} " in out for name in TASKS)


def test_help_of_a_recipe_shows_what_its_task_reads(capsys) -> None:
    shown = {}
    for name in TASKS:
        for words in (["--help"], ["--run.seed", "3", "-h"], ["--settings"]):
            assert main(["train", name, *words]) == 0
            shown[name, words[-1]] = capsys.readouterr().out
        assert len({shown[name, word] for word in ("--help", "-h", "--settings")}) == 1
        listed = set(re.findall(r"^. --([a-z_0-9.]+) ", shown[name, "-h"], re.MULTILINE))
        assert listed == setting_types(task_named(name).config).keys()


def test_a_short_trial_is_told_how_to_do_without_teachers(world, capsys) -> None:
    given = TINY_MODEL | {"data.articles": world.articles.path, "run.dir": world.folder / "run"}
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["train", "post_train", *words, "--run.max_steps", "8", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "set run.copies.every 2 or less, or run.copies.rule none for a trial" in said
    more = ["--run.max_steps", "8", "--run.copies.every", "2", "--dry-run"]
    assert main(["train", "post_train", *words, *more]) == 0
    assert "# teacher copies after steps: 2, 4, 6, 8" in capsys.readouterr().out
