"""DeepSpeed files hold only what DeepSpeed alone knows."""

import json
import re
import sys
from pathlib import Path

import pytest

from trainer.engine.deepspeed_file import (
    SET_BY_THE_RUN,
    check_by_deepspeed,
    check_compiler,
    check_compiler_of_layers,
    check_partition,
    complete_deepspeed_config,
    deepspeed_file_path,
    read_deepspeed_file,
    stage_of,
)
from trainer.errors import ConfigError


def write(folder: Path, content) -> str:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_files_of_the_project_are_found_by_name_and_pass(stage):
    assert stage_of(read_deepspeed_file(f"zero{stage}")) == stage


def test_every_file_of_the_project_is_explained():
    folder = deepspeed_file_path("zero0").parent
    explained = (folder / "README.md").read_text()
    for path in folder.glob("*.json"):
        assert path.stem in explained


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match="cpu, zero0, zero1, zero2, zero2_offload, zero3, zero3_offload"
    ):
        read_deepspeed_file("zero9")


@pytest.mark.parametrize("key", sorted(SET_BY_THE_RUN))
def test_what_the_run_sets_is_refused_naming_both_places(tmp_path, key):
    name = write(tmp_path, {key: {"enabled": True}, "zero_optimization": {"stage": 1}})
    with pytest.raises(ConfigError) as raised:
        read_deepspeed_file(name)
    assert key in str(raised.value)
    assert name in str(raised.value)
    assert SET_BY_THE_RUN[key] in str(raised.value)


def test_a_section_that_is_switched_off_is_no_conflict(tmp_path):
    name = write(tmp_path, {"bf16": {"enabled": False}})
    assert stage_of(read_deepspeed_file(name)) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON"),
        ([1], "object"),
        ({"zero_optimization": {"stage": 4}}, "stage"),
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}}, "reduce_bucket_size"),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer does nothing at stage 0; it needs stage 1 or 2 or 3",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param does nothing at stage 2; it needs stage 3",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "device is 'nvme'; expected 'cpu' or 'none'",
        ),
    ],
)
def test_unusable_files_are_refused(tmp_path, content, said):
    with pytest.raises(ConfigError, match=said):
        read_deepspeed_file(write(tmp_path, content))


@pytest.mark.parametrize(
    "zero",
    [
        [],
        {"stage": [1]},
        {"stage": 2, "offload_optimizer": "cpu"},
        {"zero_hpz_partition_size": "x"},
    ],
)
def test_sections_of_another_type_are_refused(tmp_path, zero):
    name = write(tmp_path, {"zero_optimization": zero})
    with pytest.raises(ConfigError, match="zero_optimization"):
        read_deepspeed_file(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"zero_optimization": {"stage": 1, "nosuch_key": 1}}, "nosuch_key"),
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": "x"}}, "reduce_bucket_size"),
        ({"comms_logger": {"enabled": "x"}}, "enabled"),
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning"),
    ],
)
def test_what_deepspeed_refuses_is_one_line_that_names_the_file(tmp_path, content, said):
    name = write(tmp_path, content)
    with pytest.raises(ConfigError, match=f"DeepSpeed refuses it: .*{said}") as refused:
        check_by_deepspeed(name)
    assert str(refused.value).startswith(name) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"zero_optimizatoin": {"stage": 3}}',
            "does not know 'zero_optimizatoin'; did you mean zero_",
        ),
        ('{"fooo": 1}', "DeepSpeed does not know 'fooo'; remove it"),
        ('{"zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 3}}', "is set twice"),
        ('{"zero_optimization": {"stage": 2, "stage": 0}}', "the key 'stage' is set twice"),
    ],
)
def test_keys_that_deepspeed_passes_over_are_refused(tmp_path, text, said):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_deepspeed_file(str(tmp_path / "ds.json"))


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zeropp"])
def test_deepspeed_takes_the_files_of_the_project(name):
    check_by_deepspeed(name)


def test_deep_json_is_one_line(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_deepspeed_file(str(tmp_path / "deep.json"))


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a file"):
        read_deepspeed_file(str(tmp_path / "none.json"))


def test_the_run_completes_the_batch_arithmetic():
    complete = complete_deepspeed_config(
        read_deepspeed_file("zero2"),
        micro_batch=4,
        accumulation=3,
        world_size=2,
        max_grad_norm=None,
    )
    assert complete["train_batch_size"] == 24
    assert complete["train_micro_batch_size_per_gpu"] == 4
    assert complete["gradient_accumulation_steps"] == 3
    assert complete["gradient_clipping"] == 0.0


def test_stage_0_is_clipped_by_the_run_and_zero_by_deepspeed():
    arithmetic = {"micro_batch": 4, "accumulation": 1, "world_size": 1, "max_grad_norm": 0.5}
    clipping = {
        stage: complete_deepspeed_config(read_deepspeed_file(f"zero{stage}"), **arithmetic)
        for stage in range(4)
    }
    assert [c["gradient_clipping"] for c in clipping.values()] == [0.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "stage"), [("cpu", 2), ("zero2_offload", 2), ("zero3_offload", 3)]
)
def test_other_files_of_the_project_pass_on_a_machine_without_gpus(name, stage):
    content = read_deepspeed_file(name)
    assert stage_of(content) == stage
    check_partition(content, world_size=3, has_gpu=False)


def test_the_optimizer_stays_the_runs_own_under_offload():
    arithmetic = {"micro_batch": 4, "accumulation": 1, "world_size": 1, "max_grad_norm": None}
    complete = complete_deepspeed_config(read_deepspeed_file("zero2_offload"), **arithmetic)
    assert complete["zero_force_ds_cpu_optimizer"] is False


def test_zeropp_is_refused_where_its_ranks_or_kernels_are_missing():
    content = read_deepspeed_file("zeropp")
    check_partition(content, world_size=16, has_gpu=True)
    with pytest.raises(ConfigError, match=r"zero_hpz_partition_size is 8.* 4 ranks"):
        check_partition(content, world_size=4, has_gpu=True)
    with pytest.raises(ConfigError, match="zero_quantized_weights needs GPUs"):
        check_partition(content, world_size=8, has_gpu=False)


def test_compiling_layers_without_a_compiler_is_said_before_training(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"run\.compile needs a C\+\+ compiler"):
        check_compiler_of_layers()


def test_a_missing_compiler_is_said_before_training(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ConfigError, match=r"ninja.*C\+\+ compiler"):
        check_compiler()
