"""Filling in parts, beside other processes and with interruptions; its sizes, states and
remains."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.process import one_thread
from helpers.sets import impression_samples, make_impressions, make_tokens
from helpers.tnr import ROOT, tnr
from helpers.world import TinyWorld, make_world

from shards.clicks import ClickColumn
from shards.columns import ColumnReader, ColumnWriter, describe
from shards.files import write_json_atomic
from shards.histories import distinct, holders
from trainer.cli.main import main
from trainer.errors import ColumnError, DataError, ModelError, UsageError
from trainer.export.folder import load_export
from trainer.teacher_server import fill as fill_module
from trainer.teacher_server import ranks
from trainer.teacher_server import sizes as sizes_module
from trainer.teacher_server.fill import fill
from trainer.teacher_server.identity import EXACT
from trainer.teacher_server.live import LiveClickSignals
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.planning import plan
from trainer.teacher_server.prune import unnamed_columns
from trainer.teacher_server.request import (
    FillRequest,
    cells_of_part,
    list_cells,
    parse_part,
    targets,
)
from trainer.teacher_server.signals import StoredClickSignals
from trainer.teacher_server.sizes import Sizes, bytes_to_write, stored_bytes
from trainer.teacher_server.status import status
from trainer.teacher_server.teachers import adopt, open_teachers
from trainer.teacher_server.verify import verify_lines
from trainer.teacher_server.watch import CellWork, FillProgress


def silent(line: str) -> None:
    pass


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    """Two users' histories come again and again, all over the log."""
    world = make_world(tmp_path, num_impressions=4)
    samples = impression_samples(60, world.articles.num_rows)
    for row, sample in enumerate(samples):
        if row % 3:
            sample["history"] = [1, 2, 3] if row % 3 == 1 else [4]
    impressions = make_impressions(tmp_path / "log", world.articles, samples=samples)
    return TinyWorld(world.folder, world.articles, world.tokens, impressions)


def request(world: TinyWorld, stage: int, **options: object) -> FillRequest:
    impressions = world.impressions if stage == 2 else None
    return FillRequest(articles=world.articles, impressions=impressions, **options)


def teachers_of(world: TinyWorld, stage: int, count: int = 2) -> list[str]:
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
    for shard_set in (world.articles, world.impressions):
        for path in sorted(shard_set.columns_dir.glob("teacher-*/*")):
            path.unlink()


def words(world: TinyWorld, action: str, stage: int, teachers: list[str]) -> list[str]:
    clicks = ["--clicks", str(world.impressions.path)] if stage == 2 else []
    sets = ["--articles", str(world.articles.path), *clicks]
    return ["teachers", action, "--stage", str(stage), *sets, "--models", *teachers]


@pytest.mark.parametrize("stage", [1, 2])
def test_parts_are_disjoint_complete_and_of_about_equal_work(world: TinyWorld, stage: int) -> None:
    cells = list_cells(open_teachers(teachers_of(world, stage, 3)), request(world, stage))
    total, largest = sum(cell.work for cell in cells), max(cell.work for cell in cells)
    for parts in (1, 2, 3, 5, len(cells), 40):
        found = [cells_of_part(cells, part, parts) for part in range(parts)]
        assert [cell for of_part in found for cell in of_part] == cells
        for of_part in found:
            assert abs(sum(cell.work for cell in of_part) - total / parts) <= largest


def test_a_part_is_counted_from_zero() -> None:
    assert parse_part("0/8") == (0, 8) and parse_part("7/8") == (7, 8)
    with pytest.raises(UsageError, match=r"counted from 0.* 7/8 .*--array=0-7"):
        parse_part("8/8")
    for text in ("", "3", "a/b", "-1/2", "1/0"):
        with pytest.raises(UsageError):
            parse_part(text)


@pytest.mark.parametrize("stage", [1, 2])
def test_parts_in_any_order_store_the_same_bytes_and_encode_no_article_twice(
    world: TinyWorld, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = teachers_of(world, stage)
    fill(teachers, request(world, stage), silent)
    at_once = columns_of(world)
    forget(world)
    encoded: list[np.ndarray] = []
    titles = TeacherModel.titles

    def counted(self, rows, count=None):
        encoded.append(rows)
        return titles(self, rows, count)

    monkeypatch.setattr(TeacherModel, "titles", counted)
    asked = [request(world, stage, part=(part, 3)) for part in (2, 0, 1)]
    cells = [fill(teachers, one, silent) for one in asked]
    assert all(cells) and sum(cells) == len(list_cells(open_teachers(teachers), asked[0]))
    assert columns_of(world) == at_once
    assert sum(map(len, encoded)) == len(teachers) * world.articles.num_rows
    assert not list(world.articles.columns_dir.glob(f"*{EXACT}*"))


def test_impressions_with_one_history_share_one_stored_user_vector(world: TinyWorld) -> None:
    teacher = teachers_of(world, 2, 1)
    asked = request(world, 2, dtype="float32")
    fill(teacher, asked, silent)
    clicks = ClickColumn.open(world.impressions)
    rows = np.arange(clicks.num_impressions)
    history, _ = clicks.history(rows, 5)
    expected = [next(i for i in rows if (history[i] == history[row]).all()) for row in rows]
    who = holders(clicks, 5)
    np.testing.assert_array_equal(who, expected)
    places, which = distinct(history)
    assert len(places) == len(set(expected)) < 30
    np.testing.assert_array_equal(history[places][which], history)
    reader = ColumnReader.open(*targets(load_export(teacher[0]), asked)[1])
    cells = [reader.cell(shard) for shard in range(world.impressions.num_shards)]
    assert sum(len(cell["user.values"]) for cell in cells) == len(set(expected))
    positions = np.zeros((len(rows), 2), dtype=np.int64)
    positions[:, 1] = 1
    news = np.arange(6)
    stored = StoredClickSignals(world.articles, world.impressions, teacher, "float32", "fp32")
    live = LiveClickSignals(world.articles, world.impressions, teacher)
    asked_rows = {"news": news, "user": rows}
    found, oracle = (source.read(asked_rows, positions) for source in (stored, live))
    assert found.keys() == oracle.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, oracle[name], rtol=1e-5, atol=1e-6)
    # Not all the same: a reader that always took the first vector would not pass.
    assert len(np.unique(found["teacher.0.user"], axis=0)) == len(places)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("int8", 2e-2)])
def test_stage_2_in_fewer_bytes_says_nearly_the_same(
    world: TinyWorld, dtype: str, tolerance: float
) -> None:
    teacher = teachers_of(world, 2, 1)
    fill(teacher, request(world, 2, dtype=dtype), silent)
    rows = {"news": np.array([3, -1, 5, 3]), "user": np.arange(4)}
    positions = np.zeros((4, 2), dtype=np.int64)
    stored = StoredClickSignals(world.articles, world.impressions, teacher, dtype, "fp32")
    live = LiveClickSignals(world.articles, world.impressions, teacher)
    found, oracle = (source.read(rows, positions) for source in (stored, live))
    assert found.keys() == oracle.keys()
    for name, values in found.items():
        scale = np.abs(oracle[name]).max()
        np.testing.assert_allclose(values, oracle[name], rtol=0, atol=tolerance * scale)
        assert not np.array_equal(values, oracle[name]), f"{name} is not stored in {dtype}"


@pytest.mark.parametrize("stage", [1, 2])
def test_a_signal_ends_with_75_between_batches_and_the_same_command_goes_on(
    world: TinyWorld,
    stage: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teachers = teachers_of(world, stage)
    titles, calls = TeacherModel.titles, []

    def interrupted(self, rows, count=None):
        calls.append(len(rows))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR2)
        return titles(self, rows, count)

    monkeypatch.setattr(TeacherModel, "titles", interrupted)
    assert main(words(world, "cache", stage, teachers)) == 75
    total = len(list_cells(open_teachers(teachers), request(world, stage)))
    told = capsys.readouterr().err
    assert f"stopped by SIGUSR2: {total - 1} of {total} cells are left" in told
    assert len(calls) == 2
    assert main(words(world, "cache", stage, teachers)) == 0
    assert f"done: {total - 1} cells filled" in capsys.readouterr().out
    assert len(list(verify_lines(teachers, request(world, stage), 8))) == 2 * stage


def test_processes_beside_each_other_leave_one_valid_file_a_cell(world: TinyWorld) -> None:
    """Two commands fill the same cells at once, and a launcher's two ranks those of stage I."""
    second, first = teachers_of(world, 2, 2), teachers_of(world, 1, 2)
    command = [sys.executable, "-m", "trainer.cli.main", *words(world, "cache", 2, second)]
    environment = one_thread() | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    for process in running:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
    assert len(list(verify_lines(second, request(world, 2), 8))) == 4
    assert not list(world.articles.columns_dir.glob(f"*{EXACT}*"))
    for shard_set in (world.articles, world.impressions):
        assert not list(shard_set.columns_dir.glob("**/.*tmp-*"))
    done = tnr(*words(world, "cache", 1, first), processes=2)
    assert done.returncode == 0, done.stderr
    total = len(list_cells(open_teachers(first), request(world, 1)))
    filled = [line for line in done.stdout.splitlines() if "cells filled" in line]
    assert len(filled) == 2 and all(f"[{rank}] " in done.stdout for rank in (0, 1))
    assert sum(int(line.split("done: ")[1].split()[0]) for line in filled) == total
    assert len(list(verify_lines(first, request(world, 1), 8))) == 2


def test_too_little_room_is_refused_before_anything_is_made(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes_module, "free_bytes", lambda folder: 1_500_000)
    with pytest.raises(DataError, match=r"0\.\d MB are still to be written .* 1\.5 MB are free"):
        fill(teachers_of(world, 1), request(world, 1), silent)
    assert not list(world.articles.columns_dir.glob("teacher-*"))


@pytest.mark.parametrize("stage", [1, 2])
def test_the_size_formula_is_what_is_stored(world: TinyWorld, stage: int) -> None:
    teachers, asked = teachers_of(world, stage), request(world, stage)
    sizes = Sizes(asked)
    needed = sum(need.bytes for need in bytes_to_write(open_teachers(teachers), asked, sizes))
    assert needed > 0
    fill(teachers, asked, silent)
    assert sum(need.bytes for need in bytes_to_write(open_teachers(teachers), asked)) == 0
    for target in targets(load_export(teachers[0]), asked):
        by_formula = sizes.of_cells(load_export(teachers[0]), target)
        spare = 2048 * len(by_formula)
        assert 0 <= by_formula.sum() - stored_bytes(target) <= spare
        # Without the allowance for headers and records: the tensors to the byte.
        cells = [ColumnReader.open(*target).cell(s) for s in range(len(by_formula))]
        tensors = sum(array.nbytes for cell in cells for array in cell.values())
        extra = 16 * len(by_formula) if stage == 2 and "clicks" in target.name else 0
        assert by_formula.sum() - spare == tensors - extra


def test_a_plan_measures_the_teachers_and_writes_nothing(world: TinyWorld) -> None:
    teachers = teachers_of(world, 1)
    fill(teachers[:1], request(world, 1), silent)
    before = columns_of(world)
    found = plan(teachers, request(world, 1), tasks=3, trial_s=0.05)
    assert columns_of(world) == before
    done, todo = found.teachers
    shards = world.articles.num_shards
    assert (done.cells, done.missing_cells, done.hours) == (shards, 0, 0.0)
    assert (todo.missing_cells, todo.missing_bytes) == (shards, found.bytes_to_write)
    rows = np.arange(world.articles.num_rows)
    lengths = [world.tokens.lengths("title", rows, 10), world.tokens.lengths("body", rows, 20)]
    assert todo.missing_tokens == sum(int(field.sum()) for field in lengths)
    assert todo.hours == pytest.approx(todo.missing_tokens / todo.tokens_per_s / 3600)
    assert sum(found.task_hours) == pytest.approx(todo.hours) and len(found.task_hours) == 3
    assert "3 tasks" in found.lines()[-1]


def test_status_tells_other_settings_damage_and_how_much_is_there(world: TinyWorld) -> None:
    teachers = teachers_of(world, 1, 1)
    fill(teachers, request(world, 1, dtype="float32"), silent)
    (other,) = status(teachers, request(world, 1))
    assert other.state == "other settings" and "dtype is 'float32'" in other.detail
    fill(teachers, request(world, 1, part=(0, 3)), silent)
    (partial,) = status(teachers, request(world, 1))
    assert (partial.state, partial.cells, partial.rows) == ("partial", 1, 16)
    assert "1 of 3 cells" in str(partial)
    fill(teachers, request(world, 1), silent)
    (complete,) = status(teachers, request(world, 1))
    assert (complete.state, complete.rows, complete.detail) == ("complete", 40, "")
    folder = describe(*targets(load_export(teachers[0]), request(world, 1))[0]).folder
    file = folder / "news-000001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (damaged,) = status(teachers, request(world, 1))
    assert damaged.state == "damaged" and file.name in damaged.detail
    assert fill(teachers, request(world, 1), silent) == 1
    write_json_atomic(folder / "column.json", {"name": "teacher-text"})
    assert status(teachers, request(world, 1))[0].state == "damaged"


def test_prune_removes_only_columns_of_teachers_that_nothing_names(
    world: TinyWorld, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text, clicks = teachers_of(world, 1, 2), teachers_of(world, 2, 1)
    fill(text, request(world, 1), silent)
    fill(clicks, request(world, 2), silent)
    kept, gone = (describe(*targets(load_export(t), request(world, 1))[0]).folder for t in text)
    elsewhere = tmp_path / "elsewhere"
    news = describe(*targets(load_export(clicks[0]), request(world, 2))[0]).folder
    news.rename(elsewhere)
    news.symlink_to(elsewhere)
    recipe = tmp_path / "config.json"
    write_json_atomic(recipe, {"task": "post_train_distill", "teachers": {"models": [text[0]]}})
    sets = [str(world.articles.path), str(world.impressions.path)]
    before = sorted(world.articles.columns_dir.iterdir())
    command = ["teachers", "prune", *sets, "--recipes", str(recipe)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "2 columns" in told and str(gone) in told and str(kept) not in told
    assert sorted(world.articles.columns_dir.iterdir()) == before
    assert main([*command, "--yes"]) == 0
    assert kept.is_dir() and not gone.exists() and elsewhere.is_dir() and news.is_symlink()
    assert list(world.articles.columns_dir.glob("tokens-*"))
    assert [path.name for path in world.impressions.columns_dir.iterdir() if path.is_dir()] == [
        next(world.impressions.columns_dir.glob("clicks-*")).name
    ]
    assert unnamed_columns([world.articles], [load_export(text[0]).weights_sha256]) == []
    assert main(["teachers", "prune", *sets, "--yes"]) == 2  # nothing named would remove all


def test_teachers_are_named_by_export_run_or_copies(world: TinyWorld) -> None:
    copies = world.folder / "run" / "copies"
    copies.mkdir(parents=True)
    for seed, teacher in enumerate(teachers_of(world, 1)):
        Path(teacher).rename(copies / f"step_{seed:08d}")
    names = ["step_00000000", "step_00000001"]
    assert [teacher.folder.name for teacher in open_teachers([copies])] == names
    with pytest.raises(ModelError, match=r"without an export .*copies"):
        open_teachers([copies.parent])
    with pytest.raises(ModelError, match="same weights"):
        open_teachers([copies / names[0], copies])
    Path(world.teacher("post_train", 5)).rename(copies.parent / "export")
    assert open_teachers([copies.parent])[0].folder == copies.parent / "export"
    with pytest.raises(ModelError, match="tnr teachers adopt some/encoder"):
        open_teachers(["some/encoder"])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_plain_encoder_becomes_a_teacher_that_says_its_pooled_states(
    world: TinyWorld, pooling: str, tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

    encoder = tmp_path / "encoder"
    make_tokens(world.articles, tmp_path / "other", vocab_size=180)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "other")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=180, max_position_embeddings=40, intermediate_size=32, **sizes)
    config.pad_token_id = tokenizer.pad_token_id
    BertModel(config).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    out = tmp_path / "adopted"
    with pytest.raises(UsageError, match="reads at most 40"):
        adopt(str(encoder), out, max_body_tokens=41)
    made = adopt(str(encoder), out, pooling=pooling, max_title_tokens=12, max_body_tokens=40)
    asked = request(world, 1, dtype="float32")
    fill([out], asked, silent)
    stored = ColumnReader.open(*targets(made, asked)[0]).gather("body", np.arange(8))
    texts = [sample["body"] for sample in world.articles.read(range(8))]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(encoder).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    expected = states[:, 0] if pooling == "cls" else (states * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(stored, expected.numpy(), atol=2e-6)


def test_out_of_memory_names_the_option(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(self, rows, count=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fill_module.TeacherModel, "bodies", too_much)
    with pytest.raises(ModelError, match="--batch-tokens 16384; try 8192"):
        fill(teachers_of(world, 1, 1), request(world, 1), silent)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "2"}, (5, 6, 2)),
        # A batch script outside srun: there is one process, whatever the job asked for.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_LOCALID": "0"}, (0, 1, 0)),
    ],
)
def test_the_share_of_a_process_is_its_launchers_word(
    variables: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    for name in (*names, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    here = ranks.place()
    assert (here.rank, here.world_size, here.local_rank) == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks.pick_device(None, here) == f"cuda:{here.local_rank % 2}"
    with pytest.raises(UsageError, match="sees 2 GPUs"):
        ranks.pick_device("cuda:2", here)


def test_auto_is_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (({"avx2"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")):
        monkeypatch.setattr(ranks, "_cpu_flags", lambda flags=flags: flags)
        assert ranks.resolve_compute("auto", "cpu") == expected
    for major, expected in ((7, "fp32"), (8, "bf16")):
        capability = (major, 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert ranks.resolve_compute("auto", "cuda:0") == expected
    assert ranks.resolve_compute("fp32", "cpu") == "fp32"


def test_progress_counts_work_and_bytes_and_leaves_out_what_others_did() -> None:
    shown = FillProgress(1000, 3, 4_000_000, stream=io.StringIO())
    shown.teacher = "teacher 1 of 2"
    first, second = CellWork(shown, 400), CellWork(shown, 400)
    first.add(300)
    first.add(300)  # more than was reckoned: the cell still counts for what it was
    first.done(50, 1_500_000)
    second.drop()
    line = shown.line(elapsed_s=2.0)
    assert "teacher 1 of 2, 67% of the work, cell 1 of 2, 1.5 MB of 4.0 MB" in line
    assert "200 tokens/s, 1 s left" in line and "articles/s" in line


@pytest.mark.parametrize(("stage", "tensor"), [(1, "body"), (2, "user.values"), (2, "holder")])
def test_verify_finds_values_that_are_not_the_teachers(
    world: TinyWorld, stage: int, tensor: str
) -> None:
    teachers, asked = teachers_of(world, stage, 1), request(world, stage)
    fill(teachers, asked, silent)
    assert all("bytes good" in line for line in verify_lines(teachers, asked, 60))
    target = targets(load_export(teachers[0]), asked)[-1]
    cell = {name: np.array(v) for name, v in ColumnReader.open(*target).cell(0).items()}
    cell[tensor] = cell[tensor][::-1].copy() if tensor != "holder" else np.zeros_like(cell[tensor])
    ColumnWriter(*target).write(0, cell, replace=True)  # good checksums, wrong rows
    with pytest.raises(ColumnError, match=r"differs by .* expected at most 2e-03"):
        list(verify_lines(teachers, asked, 60))
