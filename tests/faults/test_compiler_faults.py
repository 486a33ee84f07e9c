"""F5: what DeepSpeed compiles at a first start: no compiler, and unlike CPUs with one home."""

import sys
from pathlib import Path

import pytest
from helpers.world import make_world

from trainer.cli.main import main
from trainer.engine.distributed import start
from trainer.engine.extensions import cpu_type, extensions_folder, use_own_folder

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 143\nflags\t\t: fpu avx2 avx512f\n"


def test_f5_without_compiler_or_ninja_nothing_starts(tmp_path: Path, capsys, monkeypatch) -> None:
    world = make_world(tmp_path, num_articles=20)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    run = tmp_path / "run"
    words = ["--data.articles", str(world.articles.path), "--run.dir", str(run)]
    words += ["--data.max_title_tokens", "10", "--data.max_body_tokens", "20"]
    assert main(["train", "post_train", *words, "--run.deepspeed", "zero2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs ninja (pip install ninja) and a C++ compiler (g++)" in said
    assert "leave run.deepspeed out" in said
    assert not run.exists()


def test_f5_each_type_of_cpu_compiles_into_a_folder_of_its_own(tmp_path: Path) -> None:
    two_processors = f"{INTEL}cpu MHz\t: 2000.1\n\n{INTEL.replace(': 0', ': 1')}"
    assert cpu_type(INTEL) == cpu_type(two_processors)
    assert cpu_type(INTEL) == cpu_type(INTEL.replace("fpu avx2", "avx2 fpu"))
    assert cpu_type(INTEL) != cpu_type(INTEL.replace(" avx512f", ""))
    assert cpu_type(INTEL) != cpu_type(INTEL.replace("143", "85"))
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    use_own_folder(environment)
    once = environment["TORCH_EXTENSIONS_DIR"]
    assert once == str(tmp_path / cpu_type())
    use_own_folder(environment)  # as a child process of it does
    assert environment["TORCH_EXTENSIONS_DIR"] == once
    assert extensions_folder({}).parent == Path("~/.cache/torch_extensions").expanduser()


def test_f5_a_run_compiles_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    world = make_world(tmp_path, num_articles=20)
    with start(world.config("post_train")):
        from torch.utils.cpp_extension import _get_build_directory

        built = Path(_get_build_directory("deepspeed_shm_comm", verbose=False))
    assert built.is_relative_to(tmp_path / cpu_type())


@pytest.fixture(autouse=True)
def _environment(monkeypatch) -> None:
    """What a run sets is gone after the test."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
