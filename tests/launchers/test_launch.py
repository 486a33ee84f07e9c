"""`tnr launch slurm`: one training job, checked before anything is submitted."""

from pathlib import Path

import pytest

from trainer.cli.main import main


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    settings = {"--run.dir": tmp_path / "run", "--data.articles": tmp_path / "articles"}
    return ["post_train", *(str(word) for pair in settings.items() for word in pair)]


def test_print_shows_the_script_and_writes_nothing(words: list[str], tmp_path: Path, capsys):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("partition: gpu\ntasks: per_rank\n")
    options = ["--nodes", "2", "--processes", "2", "--cpus", "8", "--minutes", "90"]
    options += ["--name", "teacher", "--cluster", str(cluster), "--print"]
    assert main(["launch", "slurm", *options, *words, "--run.micro_batch", "8"]) == 0
    out = capsys.readouterr().out
    for line in ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=4", "--time=01:30:00"):
        assert f"#SBATCH {line}\n" in out
    assert "#SBATCH --partition=gpu" in out and "#SBATCH --job-name=tnr-teacher" in out
    assert "trainer.cli.main train post_train --run.dir" in out
    assert not (tmp_path / "run").exists()


def test_a_preset_is_checked_and_passed_on(words: list[str], capsys):
    for given in (["--preset", "released", *words], [*words, "--preset=released"]):
        assert main(["launch", "slurm", "--print", *given]) == 0
        out = capsys.readouterr().out
        assert "trainer.cli.main train post_train --preset released --run.dir" in out


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        (["--nodes", "3"], [], "not a multiple of 3 ranks"),
        (["--cpus", "0"], [], "cpus is 0; expected at least 1"),
        (["--name", "a b"], [], "--name is 'a b'"),
        (["--name=-a"], [], "--name is '-a'"),
        ([], ["--run.deepspeed", "zero9"], "run.deepspeed is 'zero9'"),
        ([], ["--run.max_steps", "100"], "or run.copies.rule none for a trial"),
        ([], ["--nodes", "2"], "--nodes comes after the recipe"),
        ([], ["--run.max_stepz", "2"], "max_stepz"),
        ([], ["--preset"], "unknown preset ''"),
        (["--cluster", "nowhere.yaml"], [], "nowhere.yaml does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_submits_nothing(
    words: list[str], tmp_path: Path, capsys, options: list[str], more: list[str], message: str
):
    assert main(["launch", "slurm", *options, *words, *more]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_without_slurm_it_says_where_to_go(words: list[str], monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "slurm", *words]) == 1
    assert "there is no sbatch on this machine" in capsys.readouterr().err


def test_huge_numbers_of_a_run_are_not_counted_up_to(words: list[str], capsys):
    most = str(2**31 - 1)
    huge = ["--run.global_batch", str(32 * 10**7), "--run.max_steps", most]
    main(["launch", "slurm", "--print", *words, *huge, "--run.copies.rule", "every_k"])
    capsys.readouterr()
    assert main(["launch", "slurm", "--print", *words, "--run.max_steps", most]) == 0
