"""What processes set before torch is loaded, and that its libraries find it there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.process import one_thread

from trainer import environment

ROOT = Path(__file__).parents[2]
LOADS = "import torch; torch.ones(2000, 2000).sum()"
STARTS = {
    "tnr": f"""
import sys, types
from trainer.cli import main
probe = types.ModuleType("probe")
def run(arguments):
    {LOADS}
probe.register = lambda parsers: parsers.add_parser("probe").set_defaults(run=run)
sys.modules["probe"] = probe
main.VERBS = (("probe", "probe"),)
sys.exit(main.main(["probe"]))
""",
    "rank": f"""
import sys
from pathlib import Path
from launchers import ranks
script = Path(sys.argv[1], "rank_of_test.py")
script.write_text("{LOADS}")
sys.exit(ranks.main(["--standalone", "--nproc-per-node=1", str(script)]))
""",
    "step": """
from launchers.child import context
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
Path(sys.argv[1], "step_of_test.py").write_text("def run(): import torch; torch.ones(9).sum()")
if __name__ == "__main__":
    import step_of_test
    child = context().Process(target=step_of_test.run)
    child.start()
    child.join()
    sys.exit(child.exitcode)
""",
}
"""Programs that load torch in the way that the project's processes do."""


def spin_counts(tmp_path: Path, start: str, **variables: str) -> set[str]:
    """What every copy of GNU's OpenMP says that it read, in any process of a program."""
    program = tmp_path / f"{start}.py"
    program.write_text(STARTS[start])
    hidden = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    given = {name: value for name, value in one_thread().items() if name not in hidden}
    given |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        env=given, capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = set(re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stdout + done.stderr))
    if not found:
        pytest.skip("this torch does not use GNU's OpenMP")
    return found


@pytest.mark.parametrize("start", STARTS)
def test_openmp_reads_the_spin_count(tmp_path: Path, start: str) -> None:
    assert spin_counts(tmp_path, start) == {environment.SPIN_COUNT}


def test_openmp_reads_the_users_spin_count(tmp_path: Path) -> None:
    assert spin_counts(tmp_path, "tnr", GOMP_SPINCOUNT="77") == {"77"}


def test_what_the_user_has_set_stays() -> None:
    given = {"GOMP_SPINCOUNT": "5", "KMP_BLOCKTIME": "6", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}
    kept = dict(given)
    environment.prepare(kept)
    assert kept == given


def test_the_users_wait_policy_is_not_overruled() -> None:
    kept = {"OMP_WAIT_POLICY": "ACTIVE"}
    environment.prepare(kept)
    assert "GOMP_SPINCOUNT" not in kept
    assert "KMP_BLOCKTIME" not in kept
    assert kept["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == environment.KERNELS
