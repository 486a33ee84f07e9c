"""Children that train and die at a chosen place of a save, a deletion or an export.

The places are found by patching the standard library and the hashing file writer inside the child:
the code under test has no hook for it.
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.inprocess import train
from helpers.toy import ToyData

from trainer.checkpoint.hashed import HashedFile

_HEAVY = [
    "torch",
    "torch._dynamo",
    "accelerate",
    "torch.utils.tensorboard",
    "trainer.engine.trainer",
]


def run_child(target: Callable[..., None], *arguments: Any, timeout_s: float = 120) -> int | None:
    """Run a function of a module in a child process and return its exit code, negative for a
    signal.

    The child is forked off a server that has imported torch and done nothing with it: quick, and
    none of the caller's threads and locks are copied.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    child = context.Process(target=target, args=arguments)
    child.start()
    child.join(timeout_s)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise TimeoutError(f"{target.__name__}{arguments} hung")
    return child.exitcode


def die(*args: Any, **options: Any) -> None:
    """SIGKILL to oneself."""
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(run_dir: Path, place: str, step: int, changes: dict[str, Any]) -> None:
    """Train the toy; when the checkpoint of a step reaches a place, be gone."""
    PLACES[place](f"step_{step:08d}")
    train(run_dir, **changes)


def train_and_die_in_the_grace_time(run_dir: Path, step: int, changes: dict[str, Any]) -> None:
    """SIGTERM at about a step; the checkpoint it causes is killed while it is written."""

    class Terminated(ToyData):
        def collate(self, batch_rows):
            if batch_rows.position.samples == 8 * step:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().collate(batch_rows)

    while_writing("model.safetensors")("step_")
    train(run_dir, data=Terminated(seed=3), **changes)


def while_writing(file: str) -> Callable[[str], None]:
    """Dies with half of a file of the checkpoint on the disk."""

    def arm(name: str) -> None:
        real_init, real_write = HashedFile.__init__, HashedFile.write

        def init(self, path: Path) -> None:
            self.is_deadly = path.name == file and name in path.parent.name
            real_init(self, path)

        def write(self, data) -> None:
            if self.is_deadly:
                view = memoryview(data).cast("B")
                real_write(self, view[: len(view) // 2])
                self._file.flush()
                die()
            real_write(self, data)

        HashedFile.__init__, HashedFile.write = init, write

    return arm


def _at_rename(
    is_it: Callable[[str, Path, Path], bool], *, after: bool = False
) -> Callable[[str], None]:
    """Dies before or after a rename, chosen by the checkpoint's name, the source and the target."""

    def arm(name: str) -> None:
        def deadly(real: Callable[[Path, Any], Path]) -> Callable[[Path, Any], Path]:
            def rename(self: Path, target: Any) -> Path:
                is_hit = is_it(name, self, Path(target))
                if is_hit and not after:
                    die()
                done = real(self, target)
                if is_hit:
                    die()
                return done

            return rename

        Path.rename, Path.replace = deadly(Path.rename), deadly(Path.replace)

    return arm


def _while_deleting(name: str) -> None:
    """Dies with one file of the old checkpoint gone."""
    real = shutil.rmtree

    def rmtree(path, *args, **options):
        if Path(path).name.startswith(f".deleting-{name}"):
            next(Path(path).iterdir()).unlink()
            die()
        return real(path, *args, **options)

    shutil.rmtree = rmtree


def _is_manifest(name: str, source: Path, target: Path) -> bool:
    return target.name == "manifest.json" and name in target.parent.name


def _is_commit(name: str, source: Path, target: Path) -> bool:
    return target.name == name


def _is_latest(name: str, source: Path, target: Path) -> bool:
    return target.name == "latest" and name in source.read_text()


def _is_deletion(name: str, source: Path, target: Path) -> bool:
    return source.name == name and target.name.startswith(".deleting-")


PLACES: dict[str, Callable[[str], None]] = {
    "model file": while_writing("model.safetensors"),
    "optimizer file": while_writing("optimizer.safetensors"),
    "before the manifest": _at_rename(_is_manifest),
    "before the commit": _at_rename(_is_commit),
    "after the commit": _at_rename(_is_commit, after=True),
    "before latest moves": _at_rename(_is_latest),
    "before the old one is hidden": _at_rename(_is_deletion),
    "while the old one is deleted": _while_deleting,
}
"""Where to die, by the name of the checkpoint; of the last two, by that of the old one."""
