"""What hardware only emulates is decided in one place, and said wherever it is asked for."""

from pathlib import Path

import pytest
import torch
import yaml
from helpers.inprocess import train
from helpers.world import TinyWorld, make_world

from trainer import hardware
from trainer.cli.main import main
from trainer.config.flat import to_dict
from trainer.evaluate.encode import autocast


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that computes in fp32 alone."""
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2", "fma"}))
    monkeypatch.setattr(hardware, "_said", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2", "avx512_bf16"}))
    monkeypatch.setattr(hardware, "_said", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("hardware"))


def recipe(world: TinyWorld, folder: Path, **settings: object) -> str:
    """A recipe of a short run over the world."""
    config = world.config("post_train", run__dir=str(folder / "run"), run__max_steps=1, **settings)
    plain = to_dict(config)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(yaml.dump(_lists(plain)))))
    return str(path)


def _lists(value):
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    ("flags", "slow"),
    [
        ({"avx2"}, {"bf16", "fp16"}),
        ({"avx512_bf16"}, {"fp16"}),
        ({"amx_bf16", "amx_fp16"}, set()),
        ({"asimdhp", "bf16"}, set()),
        (set(), {"bf16", "fp16"}),
    ],
)
def test_a_cpu_emulates_what_it_lists_no_instructions_for(flags, slow, monkeypatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
    found = {name for name in ("fp32", "bf16", "fp16") if hardware.emulated(name, "cpu")}
    assert found == slow


def test_flags_are_read_from_linux(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    assert hardware.cpu_flags() == frozenset()
    (tmp_path / "cpuinfo").write_text("model : amx_bf16\nflags : fpu avx512_bf16\n")
    assert hardware.cpu_flags() == {":", "flags", "fpu", "avx512_bf16"}


def test_an_old_gpu_emulates_bf16_but_not_fp16(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    found = hardware.emulated("bf16", "cuda:1")
    assert found is not None
    assert found.instead == "fp16"
    assert hardware.emulated("fp16", "cuda:1") is None


PLACES = ["--articles", "no-articles", "--clicks", "no-clicks"]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "no-export", *PLACES],
        ["predict", "no-export", *PLACES, "--out", "p.zip"],
        ["recommend", "no-export", *PLACES[:2]],
        ["teachers", "cache", "--stage", "1", *PLACES[:2], "--models", "no-export"],
    ],
)
def test_a_wrong_device_is_refused_before_anything_is_opened(
    words: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "cuda:99"):
        assert main([*words, "--device", device]) == 2
        assert capsys.readouterr().err == (
            f"tnr: error: --device {device}: this process sees no GPU; use auto\n"
        )
    for device in ("foo", "cuda:", "cuda:-1", "meta"):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--device", device])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert f"argument --device: {device!r} is not a device; expected auto, cpu" in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_says_it_at_the_start(tmp_path: Path, capsys, avx2, precision: str) -> None:
    run = train(tmp_path / "run", run__max_steps=1, run__precision=precision)
    said = capsys.readouterr().out
    assert f"WARNING: run.precision {precision} is only emulated by this CPU" in said
    assert "times slower than fp32; set run.precision fp32 instead" in said
    assert "only emulated" in (run / "log" / "train.log").read_text()


def test_training_says_nothing_where_the_hardware_has_it(tmp_path, capsys, bf16_cpu) -> None:
    train(tmp_path / "run", run__max_steps=1, run__precision="bf16")
    assert "emulated" not in capsys.readouterr().out


def test_a_dry_run_says_it(world: TinyWorld, tmp_path: Path, capsys, avx2) -> None:
    words = ["train", recipe(world, tmp_path), "--dry-run"]
    assert main(words) == 0
    assert "emulated by" not in capsys.readouterr().out
    assert main([*words, "--run.precision", "bf16"]) == 0
    assert "# WARNING: run.precision bf16 is only emulated by this CPU" in capsys.readouterr().out


@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_the_preset_for_bf16_is_refused_unless_forced(
    world: TinyWorld, tmp_path: Path, capsys, avx2, how: list[str]
) -> None:
    words = ["train", recipe(world, tmp_path), "--preset", "cpu_bf16", *how]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "use preset cpu, or force it with --run.allow_emulated true" in said
    assert main([*words, "--run.allow_emulated", "true"]) == 0
    assert "emulated by this CPU" in capsys.readouterr().out


def test_the_preset_for_bf16_serves_where_the_hardware_has_it(
    world: TinyWorld, tmp_path: Path, capsys, bf16_cpu
) -> None:
    assert main(["train", recipe(world, tmp_path), "--preset", "cpu_bf16", "--dry-run"]) == 0


def test_preflight_says_it_and_fails_for_the_preset(
    world: TinyWorld, tmp_path: Path, capsys, avx2
) -> None:
    main(["preflight"])
    assert "only emulated: bf16, fp16" in capsys.readouterr().out
    main(["preflight", recipe(world, tmp_path), "--run.precision", "bf16"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "precision " in line)
    assert line.startswith("warn")
    assert "set run.precision fp32 instead" in line
    assert main(["preflight", recipe(world, tmp_path), "--preset", "cpu_bf16"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fail  precision") and "preset cpu" in line for line in lines)


def test_filling_says_it(world: TinyWorld, capsys, avx2) -> None:
    teacher = world.teacher("post_train", 1)
    sets = ["--articles", str(world.articles.path), "--models", teacher]
    assert main(["teachers", "cache", "--stage", "1", *sets, "--compute", "bf16"]) == 0
    assert capsys.readouterr().err.count("--compute bf16 is only emulated by this CPU") == 1


def test_encoding_says_it_once(capsys, avx2) -> None:
    for _ in range(2):
        with autocast("cpu", "bf16"):
            pass
    said = capsys.readouterr().err
    assert said.count("precision bf16 is only emulated by this CPU") == 1
    assert said.count("\n") == 1
