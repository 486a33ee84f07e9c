"""A disk of a few MiB that can be filled: a tmpfs, where this machine lets one be mounted."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_FILLER = ".filler"


class SmallDisk:
    """A mounted tmpfs, with a file that takes up the room which is not to be had."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def leave(self, kib: int) -> None:
        """Fill the disk up to so many KiB."""
        self.make_room()
        with (self.path / _FILLER).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        with (self.path / _FILLER).open("rb+") as file:
            file.truncate(max(0, file.seek(0, 2) - (kib << 10)))

    def make_room(self) -> None:
        """Take the filling away."""
        (self.path / _FILLER).unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, mib: int = 16) -> Iterator[SmallDisk]:
    """Mount a small disk; skip the test where that is not allowed."""
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small disk: {error}")
    if done.returncode:
        pytest.skip(f"no small disk: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: a thread of the tested command may still hold a file open.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
