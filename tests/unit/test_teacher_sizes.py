"""Sizes, plans, states and remains of teachers' columns, and who counts as a teacher."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sets import make_tokens
from helpers.teacher_columns import (
    columns_of,
    request,
    silent,
    targets,
    teachers_of,
    world_of_returning_users,
)
from helpers.world import TinyWorld

from shards.columns import ColumnReader, ColumnWriter, describe
from shards.files import write_json_atomic
from trainer import hardware
from trainer.cli.main import main
from trainer.errors import ColumnError, DataError, ModelError, UsageError
from trainer.export.folder import load_export
from trainer.teacher_server import cells as cells_module
from trainer.teacher_server import outputs, ranks
from trainer.teacher_server.cells import stored_bytes
from trainer.teacher_server.fill import fill
from trainer.teacher_server.planning import plan
from trainer.teacher_server.prune import unnamed_columns
from trainer.teacher_server.request import bytes_to_write, signals_of
from trainer.teacher_server.status import status
from trainer.teacher_server.teachers import adopt, open_teachers
from trainer.teacher_server.verify import verify_lines
from trainer.teacher_server.watch import CellWork, FillProgress


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    """Two users' histories come again and again, all over the log."""
    return world_of_returning_users(tmp_path)


def test_too_little_room_is_refused_before_anything_is_made(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells_module, "free_bytes", lambda folder: 1_500_000)
    with pytest.raises(DataError, match=r"0\.\d MB are still to be written .* 1\.5 MB are free"):
        fill(teachers_of(world, 1), request(world, 1), silent)
    assert not list(world.articles.columns_dir.glob("teacher-*"))


@pytest.mark.parametrize("stage", [1, 2])
def test_the_size_formula_is_what_is_stored(world: TinyWorld, stage: int) -> None:
    teachers, asked = teachers_of(world, stage), request(world, stage)
    opened = open_teachers(teachers)
    signals = [signal for teacher in opened for signal in signals_of(teacher, asked)]
    assert sum(need.bytes for need in bytes_to_write(signals)) > 0
    fill(teachers, asked, silent)
    assert sum(need.bytes for need in bytes_to_write(signals)) == 0
    for signal in signals_of(opened[0], asked):
        by_formula, target = signal.sizes, signal.target
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

    monkeypatch.setattr(outputs.TeacherModel, "bodies", too_much)
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
    assert hardware.pick_device("auto", here.local_rank) == f"cuda:{here.local_rank % 2}"
    with pytest.raises(UsageError, match="sees 2 GPUs"):
        hardware.pick_device("cuda:2", here.local_rank)


def test_auto_is_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (({"avx2"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")):
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: frozenset(flags))
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
    assert all("bytes intact" in line for line in verify_lines(teachers, asked, 60))
    target = targets(load_export(teachers[0]), asked)[-1]
    cell = {name: np.array(v) for name, v in ColumnReader.open(*target).cell(0).items()}
    cell[tensor] = cell[tensor][::-1].copy() if tensor != "holder" else np.zeros_like(cell[tensor])
    ColumnWriter(*target).write(0, cell, replace=True)  # good checksums, wrong rows
    with pytest.raises(ColumnError, match=r"differs by .* expected at most 2e-03"):
        list(verify_lines(teachers, asked, 60))
