"""Checkpoints of a run. They hold safetensors and JSON only, and are written under another name and renamed when complete.

::

    checkpoints/step-000050/  planner/trainable.safetensors  planner/optimizer.safetensors  state.json  manifest.json

``manifest.json`` lists every other file with its size and SHA-256. It is written last: a folder without a valid manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gotr1_core.engine.files import DISK_FULL, read_json, replace_folder
from gotr1_core.errors import Gotr1Error, UsageError

STATE, MANIFEST = "state.json", "manifest.json"
TRAINABLE, OPTIMIZER, CRITIC = "trainable.safetensors", "optimizer.safetensors", "critic.safetensors"
EMA_FILE = "ema.safetensors"
CHECKPOINTS = "checkpoints"


@contextmanager
def explain_full_disk(folder: Path, *, again: str) -> Iterator[None]:
    """Turns a full disk into an error that names the last checkpoint in ``folder``. ``again``: what to do after making room, for the hint.

    Raises:
        Gotr1Error: there was no room to write a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        safe = "".join(f"; the last checkpoint is {last}" for last in list(complete_checkpoints(folder).values())[-1:])
        message = f"{error.filename or folder} cannot be written: {error.strerror}{safe}"
        raise Gotr1Error(message, hint=f"make room, then {again}") from error


@contextmanager
def new_checkpoint(run: Path, step: int) -> Iterator[Path]:
    """Gives a folder to write a step's checkpoint into. If the block ends without an error, adds the manifest and renames the folder."""
    with replace_folder(run / CHECKPOINTS / f"step-{step:06d}") as part:
        yield part
        files = sorted(path for path in part.rglob("*") if path.is_file())
        entries = {str(path.relative_to(part)): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
        (part / MANIFEST).write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_damage(folder: Path, *, deep: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None. ``deep`` compares SHA-256 digests too; without it only sizes, which is quick."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or (deep and _digest(path) != entry["sha256"]):
                return f"{name} is not what was saved"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def complete_checkpoints(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by step, in order. Only their sizes are checked."""
    checkpoints = {}
    for folder in sorted((run / CHECKPOINTS).glob("step-*")):
        number = folder.name.removeprefix("step-")
        if number.isdigit() and find_damage(folder, deep=False) is None:
            checkpoints[int(number)] = folder
    return dict(sorted(checkpoints.items()))


def prune_checkpoints(run: Path, keep: int, best: int | None) -> None:
    """Removes all checkpoints but the last ``keep`` and that of step ``best``."""
    checkpoints = complete_checkpoints(run)
    for step in list(checkpoints)[:-keep]:
        if step != best:
            shutil.rmtree(checkpoints[step], ignore_errors=True)


def read_state(folder: Path, *, deep: bool = True) -> dict[str, Any]:
    """The JSON state of a checkpoint, after a check of all its files. ``deep`` is as in :func:`find_damage`.

    Raises:
        UsageError: the folder is not a checkpoint, or is damaged.
    """
    if not (folder / STATE).is_file():
        raise UsageError(f"{folder} is not a checkpoint", hint="give the folder of a run, or of one of its checkpoints")
    problem = find_damage(folder, deep=deep)
    if problem:
        raise UsageError(f"{folder} is damaged: {problem}", hint="use another checkpoint of the run, or remove this one")
    return read_json(folder / STATE)
