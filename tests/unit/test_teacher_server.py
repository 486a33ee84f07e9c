"""Teacher columns: filled once, told apart by what they were made from, and equal to the live
teacher."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exports import rewrite
from helpers.sets import make_articles
from helpers.teacher_columns import targets
from helpers.world import TinyWorld, make_world

from shards.columns import describe, list_columns
from shards.files import read_json
from shards.stream import Stream
from shards.tokenize import tokenize_set
from shards.tokenizer import train_tokenizer
from trainer.errors import ColumnError, ModelError
from trainer.export.folder import Export, load_export
from trainer.tasks.build import build
from trainer.teacher_server import outputs
from trainer.teacher_server.fill import FillRequest, fill
from trainer.teacher_server.request import signals_of
from trainer.teacher_server.status import status_lines
from trainer.teacher_server.verify import verify_lines


def silent(line: str) -> None:
    pass


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    return make_world(tmp_path)


def request(world: TinyWorld, stage: int, **options: str) -> FillRequest:
    impressions = world.impressions if stage == 2 else None
    return FillRequest(articles=world.articles, impressions=impressions, **options)


def teachers_of(world: TinyWorld, stage: int, count: int = 2, **settings: object) -> list[str]:
    task = "post_train" if stage == 1 else "finetune"
    return [world.teacher(task, seed, **settings) for seed in range(count)]


def losses(world: TinyWorld, stage: int, teachers: list[str], source: str, dtype: str, **settings):
    task = "post_train_distill" if stage == 1 else "finetune_distill"
    torch.manual_seed(0)
    config = world.config(
        task, teachers__models=teachers, teachers__source=source, teachers__dtype=dtype, **settings
    )
    built = build(config)
    built.module.eval()
    found = []
    stream = Stream(built.data.order, 8, 0, 1)
    for _, rows in zip(range(6), stream, strict=False):
        out = built.module(built.data.collate(rows).batch)
        found.append([out["loss"].item(), *(v.item() for v in out["losses"].values())])
    return np.array(found)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-6), ("float16", 2e-3), ("int8", 2e-2)]
)
def test_stored_and_live_teachers_give_the_same_losses(
    world: TinyWorld, stage: int, dtype: str, tolerance: float
) -> None:
    teachers = teachers_of(world, stage)
    fill(teachers, request(world, stage, dtype=dtype), silent)
    stored = losses(world, stage, teachers, "stored", dtype)
    live = losses(world, stage, teachers, "live", dtype)
    np.testing.assert_allclose(stored, live, rtol=tolerance)


def test_the_released_codes_empty_slots_have_teacher_vectors_too(world: TinyWorld) -> None:
    released = {
        "model__pooling_mask": False,
        "model__history_padding": "learned",
        "data__pad_to_max": True,
    }
    teachers = teachers_of(world, 2, **released)
    fill(teachers, request(world, 2, dtype="float32"), silent)
    options = released | {"loss__padded_slots": True, "loss__shared_projection": True}
    stored = losses(world, 2, teachers, "stored", "float32", **options)
    live = losses(world, 2, teachers, "live", "float32", **options)
    np.testing.assert_allclose(stored, live, rtol=2e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_filling_again_does_only_what_is_missing(world: TinyWorld, stage: int) -> None:
    teachers = teachers_of(world, stage)
    asked = request(world, stage)
    cells = fill(teachers, asked, silent)
    shards = len(world.articles.manifest.shards)
    if stage == 2:
        shards += len(world.impressions.manifest.shards)
    assert cells == 2 * shards
    assert fill(teachers, asked, silent) == 0
    lines, complete = status_lines(teachers, asked)
    assert complete and len(lines) == 1 + 2 * stage
    info = describe(*targets(load_export(teachers[0]), asked)[0])
    for file in info.folder.glob("*000001*"):
        file.unlink()
    assert not status_lines(teachers, asked)[1]
    assert fill(teachers, asked, silent) == 1


def test_a_fifth_teacher_recomputes_nothing_of_the_others(world: TinyWorld) -> None:
    teachers = teachers_of(world, 1, count=3)
    fill(teachers[:2], request(world, 1), silent)
    assert fill(teachers, request(world, 1), silent) == len(world.articles.manifest.shards)


@pytest.mark.parametrize("stage", [1, 2])
def test_teachers_of_other_widths_backbones_and_tokenizers_mix(
    world: TinyWorld, stage: int
) -> None:
    """All that must hold is a token column of each tokenizer beside the set."""
    tokenizer = str(world.folder / "other-tokenizer")
    train_tokenizer(make_articles(world.folder / "more", 300), tokenizer, 150)
    tokenize_set(world.articles, tokenizer, title_tokens=12, body_tokens=40)
    folders = {path.name for path in world.articles.columns_dir.glob("tokens-*")}
    (other,) = folders - {world.tokens.reader.folder.name}
    own = {"data__tokens": world.tokens.reader.folder.name}
    task = "post_train" if stage == 1 else "finetune"
    wide = {"model__news_dim": 20, "model__backbone__hidden_size": 24, "data__tokens": other}
    teachers = [world.teacher(task, 0, **own), world.teacher(task, 1, **wide)]
    shas = {load_export(one).info["tokenizer_sha256"] for one in teachers}
    assert len(shas) == 2
    fill(teachers, request(world, stage, dtype="float32"), silent)
    stored = losses(world, stage, teachers, "stored", "float32", **own)
    np.testing.assert_allclose(
        stored, losses(world, stage, teachers, "live", "float32", **own), rtol=2e-6
    )
    built = build(
        world.config(f"{task}_distill", teachers__models=teachers, teachers__dtype="float32", **own)
    )
    said = built.data.collate(next(Stream(built.data.order, 8))).batch.teachers
    vectors = said.bodies if stage == 1 else said.users
    assert [of_teacher.shape[1] for of_teacher in vectors] == [12, 20]


def test_only_one_teacher_is_in_memory_at_a_time(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    alive: list[weakref.ref] = []

    class Counted(outputs.TeacherModel):
        def __init__(self, *words, **options):
            gc.collect()
            assert not [ref for ref in alive if ref() is not None], (
                "an earlier teacher is still held"
            )
            super().__init__(*words, **options)
            alive.append(weakref.ref(self.model))

    monkeypatch.setattr(outputs, "TeacherModel", Counted)
    fill(teachers_of(world, 1, count=3), request(world, 1), silent)
    assert len(alive) == 3


@pytest.mark.parametrize("stage", [1, 2])
def test_vectors_of_damaged_articles_do_not_outlive_the_repair(
    world: TinyWorld, stage: int
) -> None:
    def check_losses() -> None:
        stored, live = (losses(world, stage, teachers, s, "float32") for s in ("stored", "live"))
        np.testing.assert_allclose(stored, live, rtol=2e-6)

    def asked_for() -> list[dict]:
        found = targets(load_export(teachers[0]), asked)
        return [target.made_from for target in found]

    teachers, lengths = teachers_of(world, stage, 1), {"title_tokens": 12, "body_tokens": 40}
    asked, tokenizer = request(world, stage, dtype="float32"), world.folder / "tokenizer"
    undamaged = asked_for()
    assert all("damaged_rows" not in made_from for made_from in undamaged)

    shard = world.articles.path / world.articles.manifest.shards[0].name
    intact = shard.read_bytes()
    place = intact.index(b'"title"') + 12
    shard.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
    shutil.rmtree(world.tokens.folder)
    column = tokenize_set(world.articles, tokenizer, **lengths, skip_damaged=1)
    cells = fill(teachers, asked, silent)
    assert status_lines(teachers, asked)[1]
    check_losses()

    shard.write_bytes(intact)
    tokenize_set(world.articles, tokenizer, **lengths)
    assert not status_lines(teachers, asked)[1]
    with pytest.raises(ColumnError, match=r"damaged_rows is '.*' in the column, not asked for"):
        losses(world, stage, teachers, "stored", "float32")
    assert fill(teachers, asked, silent) == cells
    check_losses()
    shutil.rmtree(column.folder)  # whoever reads columns need not have the teacher's tokens
    assert asked_for() == undamaged


def test_a_teacher_that_knows_empty_texts_of_articles_that_are_read_is_refused(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = teachers_of(world, 1, 1)
    monkeypatch.setattr(Export, "damaged_rows", lambda *_: [3])  # of a tokenizer of its own
    with pytest.raises(
        ColumnError, match=r"1 articles that this run reads were damaged \(row 3 first\)"
    ):
        losses(world, 1, teachers, "live", "float32")


@pytest.mark.parametrize("stage", [1, 2])
def test_students_with_stored_teachers_never_load_one(
    world: TinyWorld, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = teachers_of(world, stage)
    fill(teachers, request(world, stage, dtype="float32"), silent)

    def refuse(*words, **options):
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr("trainer.export.folder.Export.load_model", refuse)
    monkeypatch.setattr("trainer.models.loading.load_model", refuse)
    losses(world, stage, teachers, "stored", "float32")
    with pytest.raises(AssertionError, match="a teacher was loaded"):
        losses(world, stage, teachers, "live", "float32")


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_title_tokens", 9), ("pad_to_max", True), ("weights_sha256", "0" * 64)],
)
def test_a_column_of_another_teacher_is_refused_by_the_field_that_differs(
    world: TinyWorld, field: str, value: object
) -> None:
    teachers = teachers_of(world, 1)
    fill(teachers, request(world, 1), silent)
    rewrite(teachers[0], lambda info: info.update({field: value}))
    with pytest.raises(ColumnError) as caught:
        losses(world, 1, teachers, "stored", "float16")
    assert field.removeprefix("weights_") in str(caught.value)
    assert "tnr teachers cache --stage 1" in str(caught.value)


def test_a_student_asks_for_the_stored_dtype(world: TinyWorld) -> None:
    teachers = teachers_of(world, 1)
    fill(teachers, request(world, 1, dtype="float16"), silent)
    with pytest.raises(ColumnError, match="dtype"):
        losses(world, 1, teachers, "stored", "float32")


def test_post_trained_models_are_no_stage_two_teachers_and_the_reverse(world: TinyWorld) -> None:
    with pytest.raises(ModelError, match="does not have a user encoder"):
        fill(teachers_of(world, 1), request(world, 2), silent)
    with pytest.raises(ModelError, match="max_body_tokens"):
        fill(teachers_of(world, 2), request(world, 1), silent)


def test_edited_weights_are_found(world: TinyWorld) -> None:
    teacher = teachers_of(world, 1, count=1)[0]
    weights = Path(teacher) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        fill([teacher], request(world, 1), silent)


def test_looking_at_columns_makes_none(world: TinyWorld) -> None:
    lines, complete = status_lines(teachers_of(world, 1), request(world, 1))
    assert not complete and "empty" in lines[1]
    assert not list(world.articles.columns_dir.glob("teacher-*"))


@pytest.mark.parametrize("stage", [1, 2])
def test_verify_recomputes_rows_with_the_live_teacher(world: TinyWorld, stage: int) -> None:
    teachers = teachers_of(world, stage)
    asked = request(world, stage)
    fill(teachers, asked, silent)
    lines = list(verify_lines(teachers, asked, rows=16))
    assert len(lines) == 2 * stage and all("bytes intact" in line for line in lines)


def test_what_does_not_fit_float16_is_refused_with_its_rows(world: TinyWorld) -> None:
    teacher = teachers_of(world, 1, count=1)[0]
    model = load_export(teacher).load_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    broken = Path(teacher).with_name("large")
    from trainer.export.folder import export_model

    export_model(model, broken, None, read_json(Path(teacher) / "tnr.json"))
    with pytest.raises(ColumnError, match="row"):
        fill([str(broken)], request(world, 1), silent)


def test_the_history_length_is_part_of_what_a_column_over_impressions_is(world: TinyWorld) -> None:
    """Another length gives other user vectors and scores, and the same news vectors."""
    teacher = load_export(teachers_of(world, 2, 1)[0])
    longer = replace(teacher, info=teacher.info | {"history_length": 6})
    assert teacher.info["history_length"] == 5
    found = [signals_of(one, request(world, 2)) for one in (teacher, longer)]
    news, (first, second) = zip(*([s.made_from for s in signals] for signals in found), strict=True)
    assert {key for key in first if first[key] != second[key]} == {"history_length"}
    assert news[0] == news[1]
    fill([str(teacher.folder)], request(world, 2), silent)
    (column,) = list_columns(world.impressions, "teacher-clicks")
    assert column.made_from["history_length"] == 5


@pytest.mark.parametrize("stage", [1, 2])
def test_teachers_columns_are_part_of_what_a_run_reads(world: TinyWorld, stage: int) -> None:
    """Resumed with other teachers, or the same stored otherwise, a run is another one."""
    task = "post_train_distill" if stage == 1 else "finetune_distill"
    teachers = teachers_of(world, stage)
    found = {}
    for dtype in ("float16", "float32"):
        fill(teachers, request(world, stage, dtype=dtype), silent)
        for order in (teachers, teachers[::-1]):
            config = world.config(task, teachers__models=order, teachers__dtype=dtype)
            data = build(config).data
            columns = data.signals.columns
            assert len(columns) == 2 * stage
            parts = dict(part.split(":") for part in data.fingerprint.split(" "))
            for number, column in enumerate(columns):
                assert parts[f"teacher_column_{number}"] == column.fingerprint[:16]
            found[dtype, tuple(order)] = data.fingerprint
    assert len(set(found.values())) == 4
