"""Checkpoint folders: complete or absent, found by name, verified before use.

::

    checkpoints/
      step_00000500/   model.safetensors  optimizer.safetensors  state.json  manifest.json
      latest           the name of the newest, for people and scripts
      best             the name of the best by ``run.best_metric``, where one is named

A folder is filled under a hidden name, its manifest (bytes and sha256 of every file) is written
last, and a rename publishes it. The folders themselves determine which is newest, and the values in
their ``state.json`` which is best; ``latest`` and ``best`` are updated after publication and
repaired if they are wrong. Modification times are never used.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.files import (
    MAX_JSON_BYTES,
    atomic_file,
    fsync_folder,
    parse_json,
    read_bytes,
    read_json,
    remove,
    sha256_file,
    write_json_atomic,
)
from shards.stale import again_where_stale
from trainer.checkpoint.binding import check_bound
from trainer.checkpoint.hashed import FileEntry, write_hashed_json
from trainer.checkpoint.retention import Retention
from trainer.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
LATEST = "latest"
BEST = "best"

_POINTER_BYTES = 4096
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; its files were verified unless :meth:`CheckpointStore.look` found it."""

    folder: Path
    step: int
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, used only by rank 0.

    Args:
        folder: The run's ``checkpoints`` folder; created with the first checkpoint.
        retention: Rules for which checkpoints to keep.
        warn: Called with a message for every checkpoint that is skipped.
    """

    def __init__(self, folder: Path, retention: Retention, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self._retention = retention
        self._warn = warn

    def steps(self) -> list[int]:
        """Return the steps of the published checkpoints, damaged or not, in ascending order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"step_{step:08d}"

    def save(
        self, step: int, state: dict[str, Any], write_files: Callable[[Path], dict[str, FileEntry]]
    ) -> Path:
        """Write and publish a checkpoint, update ``latest`` and ``best``, delete old checkpoints.

        Args:
            step: Optimizer steps taken.
            state: Content of ``state.json``.
            write_files: Writes further files durably into the folder that it is given, and returns
                their manifest entries by name.

        Raises:
            CheckpointError: The disk refused the write (full, read-only, broken). Earlier
                checkpoints are untouched, and nothing incomplete stays.
        """
        final = self.path(step)
        building = self.folder / f".{final.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                fsync_folder(self.folder.parent)
            building.mkdir()
            files = dict(write_files(building))
            stated = stated_at(step, state)
            files[STATE] = write_hashed_json(building / STATE, stated)
            self._write_manifest(building, files)
            self._publish(building, final)
            self._point(LATEST, final.name)
            # Later checkpoints belong to an abandoned past of this run, so space may be made of
            # them.
            best = self._point_at_best(up_to=step)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint of step {step} could not be written to {self.folder}: "
                f"{error.strerror or error}; earlier checkpoints are intact. Free space or repair "
                "the disk, and start the run again"
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        for old in self._retention.superfluous(self.steps(), step, best):
            self._delete(self.path(old))
        return final

    def find(self) -> Checkpoint | None:
        """Return the newest intact checkpoint; None if none was ever published.

        Damaged checkpoints are reported and skipped. Leftovers of killed saves and deletions are
        removed.

        Returns:
            The checkpoint, or None if none was ever published.

        Raises:
            CheckpointError: Checkpoints, or signs of them, exist, but none is usable.
        """
        self._remove_leftovers()
        steps = self.steps()
        reasons: list[str] = []
        for step in reversed(steps):
            try:
                checkpoint = self.verify(step)
            except CheckpointError as error:
                reasons.append(str(error))
                self._warn(f"checkpoint skipped: {error}")
                continue
            self._check_latest(checkpoint)
            self._point_at_best(up_to=step)
            return checkpoint
        if reasons:
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be used: "
                f"{'; '.join(reasons)}. Put back an intact copy, or start a new run in another "
                "folder"
            )
        if (self.folder / LATEST).exists():
            raise CheckpointError(
                f"{self.folder / LATEST} names a checkpoint, but the folder holds none: put it "
                "back, or start a new run in another folder"
            )
        return None

    def look(self) -> Checkpoint | None:
        """Return the newest checkpoint with a readable ``state.json``; check no other file."""
        for step in reversed(self.steps()):
            with contextlib.suppress(DataError):
                return Checkpoint(self.path(step), step, read_state(self.path(step) / STATE))
        return None

    @again_where_stale
    def verify(self, step: int) -> Checkpoint:
        """Read a checkpoint's manifest and state, and compare the sha256 of every file.

        Raises:
            CheckpointError: A file is wrong; names the file and the problem.
        """
        folder = self.path(step)
        try:
            files = read_json(folder / MANIFEST, _Manifest).files
            for name, entry in files.items():
                _verify_file(folder / name, entry.bytes, entry.sha256)
            state = read_state(folder / STATE)
        except DataError as error:
            raise CheckpointError(f"{folder} is incomplete or damaged: {error}") from error
        if STATE not in files or state.get("step") != step:
            raise CheckpointError(
                f"{folder} is incomplete or damaged: {STATE} belongs to another checkpoint"
            )
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder} has format {state.get('format')!r}; this version reads {FORMAT}"
            )
        check_bound(folder, state, files)
        return Checkpoint(folder, step, state)

    def _write_manifest(self, building: Path, files: dict[str, FileEntry]) -> None:
        write_json_atomic(building / MANIFEST, {"format": FORMAT, "files": files})

    def _publish(self, building: Path, final: Path) -> None:
        """Rename a folder into place; a damaged checkpoint of the same step makes way first."""
        stands = None
        if final.exists():
            stands = self.folder / f".deleting-{final.name}-{secrets.token_hex(4)}"
            final.rename(stands)
        building.rename(final)
        fsync_folder(self.folder)
        if stands is not None:
            remove(stands)

    def _delete(self, folder: Path) -> None:
        """Hide a folder, then remove it: a kill in between leaves no partial checkpoint visible."""
        hidden = folder.with_name(f".deleting-{folder.name}-{secrets.token_hex(4)}")
        try:
            folder.rename(hidden)
        except OSError as error:
            self._warn(f"old checkpoint {folder} could not be deleted: {error.strerror or error}")
            return
        remove(hidden)

    def _remove_leftovers(self) -> None:
        if not self.folder.is_dir():
            return
        for entry in self.folder.iterdir():
            if entry.name.startswith((".step_", ".deleting-")) and entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name.startswith((f".{LATEST}.tmp-", f".{BEST}.tmp-")):
                entry.unlink(missing_ok=True)

    def _point(self, pointer: str, name: str) -> None:
        if not (self.folder / pointer).is_file():
            remove(self.folder / pointer)  # a file does not replace a FIFO or a dangling link
        with atomic_file(self.folder / pointer, "w") as file:
            file.write(name + "\n")

    def _pointed(self, pointer: str) -> str:
        """Return the name in ``latest`` or ``best``; empty if there is none."""
        try:
            return read_bytes(self.folder / pointer, limit=_POINTER_BYTES).decode().strip()
        except (DataError, UnicodeDecodeError):
            return ""

    def _point_at_best(self, up_to: int | None = None) -> int | None:
        """Update ``best`` to the best checkpoint by the recorded values.

        Args:
            up_to: Later checkpoints were skipped as damaged and do not count.

        Returns:
            The best step; None if no checkpoint has a value.
        """
        values = {}
        for step in self.steps():
            if up_to is not None and step > up_to:
                break
            value = self._recorded(step)
            if value is not None:
                values[step] = value
        best = self._retention.best(values)
        if best is None:
            (self.folder / BEST).unlink(missing_ok=True)
        elif self._pointed(BEST) != self.path(best).name:
            self._point(BEST, self.path(best).name)
        return best

    def _recorded(self, step: int) -> float | None:
        try:
            return self._retention.value(read_state(self.path(step) / STATE))
        except DataError:
            return None  # damaged, hence not a candidate; reported when it is skipped

    def _check_latest(self, checkpoint: Checkpoint) -> None:
        latest, named = self.folder / LATEST, self._pointed(LATEST)
        if named == checkpoint.folder.name:
            return
        match = _NAME.fullmatch(named)
        if (
            match
            and int(match.group(1)) > checkpoint.step
            and not self.path(int(match[1])).exists()
        ):
            self._warn(
                f"{latest} names {named}, which is missing; continuing from "
                f"{checkpoint.folder.name}"
            )
        elif not named:
            self._warn(f"{latest} is missing or empty; continuing from {checkpoint.folder.name}")
        self._point(LATEST, checkpoint.folder.name)


def stated_at(step: int, state: dict[str, Any]) -> dict[str, Any]:
    """Return the complete ``state.json`` of a step.

    Args:
        step: Optimizer steps taken.
        state: State that :meth:`CheckpointStore.save` was given.
    """
    return {"format": FORMAT, "step": step, **state}


def read_state(path: Path) -> dict[str, Any]:
    """Read a ``state.json`` and check the types of the entries that the engine reads.

    Raises:
        DataError: The file is unreadable, or an entry has a wrong type.
    """
    content = read_bytes(path, limit=MAX_JSON_BYTES)
    parse_json(content, _State, where=path.name)
    return parse_json(content, dict[str, Any], where=path.name)


@dataclass(frozen=True)
class _Entry:
    """A file in a manifest."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """A checkpoint's manifest."""

    files: dict[str, _Entry]


@dataclass(frozen=True)
class _State:
    """Entries that are read from a ``state.json`` of any version."""

    step: int
    format: int
    position: dict[str, Any] | None = None
    data: str = ""
    config: dict[str, dict[str, Any] | str] | None = None
    backend: dict[str, int | float] | None = None
    not_finite: list[dict[str, Any]] | None = None
    validation: dict[str, Any] | None = None


def _verify_file(path: Path, size: int, sha256: str) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}") from error
    if found != size:
        raise DataError(f"{path.name} has {found} bytes, expected {size}")
    if sha256_file(path) != sha256:
        raise DataError(f"{path.name} has another sha256 than its manifest says")
