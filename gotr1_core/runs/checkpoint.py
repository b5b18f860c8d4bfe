"""Checkpoints of a run. They hold safetensors and JSON only, and are written under another name and renamed when complete.

::

    checkpoints/step-000050/  planner/trainable.safetensors  planner/optimizer.safetensors  state.json  manifest.json

``manifest.json`` lists every other file with its size and SHA-256. It is written last: a folder without a valid manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

from gotr1_core.engine.console import print
from gotr1_core.engine.files import DISK_FULL, MISSING, PART, REPLACED, is_count, misfit, read_json, recover_folder, replace_folder
from gotr1_core.errors import Gotr1Error, UsageError

STATE, MANIFEST = "state.json", "manifest.json"
TRAINABLE, OPTIMIZER, CRITIC = "trainable.safetensors", "optimizer.safetensors", "critic.safetensors"
EMA_FILE = "ema.safetensors"
ALGORITHM = "algorithm"  # the folder of its own state, if it keeps some
CHECKPOINTS = "checkpoints"
REMOVED = ".removed"
LEFT = (PART, REPLACED, REMOVED)
"""Suffixes of the folders that a killed process may leave beside checkpoints: half written, being replaced, half removed."""


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
    """What is wrong with a checkpoint, or None. ``deep`` compares the SHA-256 of all files; without it only sizes and the state."""
    if not os.path.lexists(folder / MANIFEST):
        return f"{MANIFEST} is missing"
    try:
        files = read_json(folder / MANIFEST)["files"]
        if STATE not in files:
            return f"{MANIFEST} does not list {STATE}"
        for name, entry in files.items():
            path = folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return f"{MANIFEST} is damaged"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or ((deep or name == STATE) and _digest(path) != entry["sha256"]):
                return f"{name} is not what was saved"
    except (UsageError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return _state_problem(folder)


_STATE_SHAPE = {
    **{"step": is_count, "rows": is_count, "drawn": is_count, "pending": bool},
    "best": (NoneType, {"step": is_count, "score": (MISSING, int, float)}),
    **{"sampling": dict, "starting": {str: str}, "updates": {str: is_count}, "lost_state": (MISSING, [str])},
}


def _state_problem(folder: Path) -> str | None:
    """What is wrong with the state of a checkpoint whose files are those that its manifest lists, or None."""
    try:
        state = read_json(folder / STATE)
    except UsageError:
        return f"{STATE} is damaged"
    wrong = misfit(state, _STATE_SHAPE)
    if not wrong and state["step"] != (_step_of(folder) or state["step"]):
        wrong = "step"
    return f"{STATE} is damaged: it has no {wrong} that a run wrote" if wrong else None


def _step_of(folder: Path) -> int | None:
    """The step in a checkpoint's name; None if a run gives no such name, as ``step-1`` and ``step-²``."""
    number = folder.name.removeprefix("step-")
    return int(number) if number.isascii() and number.isdigit() and folder.name == f"step-{int(number):06d}" else None


def complete_checkpoints(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by step, in order. Their sizes and their states are checked."""
    numbered = {step: folder for folder in (run / CHECKPOINTS).glob("step-*") if (step := _step_of(folder)) is not None}
    return {step: folder for step, folder in sorted(numbered.items()) if find_damage(folder, deep=False) is None}


def damaged_checkpoints(run: Path) -> dict[Path, str]:
    """The folders of a run that look like checkpoints and are none, with what is wrong. What a killed process left is not among them."""
    folders = [folder for folder in sorted((run / CHECKPOINTS).glob("step-*")) if folder.suffix not in LEFT]
    problems = {folder: "no run gives such a name" if _step_of(folder) is None else find_damage(folder, deep=False) for folder in folders}
    return {folder: problem for folder, problem in problems.items() if problem is not None}


@cache
def warn_of_damage(run: Path, then: str) -> None:
    """Says which folders of a run are no whole checkpoints, and ``then`` what is done. It says the same thing once in a process."""
    for folder, problem in damaged_checkpoints(run).items():
        print(f"warning: {folder} is damaged: {problem}; {then}", file=sys.stderr)


def prune_checkpoints(run: Path, keep: int, best: int | None) -> None:
    """Removes all complete checkpoints but the last ``keep`` and that of step ``best``, and what earlier processes left."""
    remove_leftovers(run)
    checkpoints = complete_checkpoints(run)
    for step in list(checkpoints)[:-keep]:
        if step != best:
            removed = checkpoints[step].with_suffix(REMOVED)
            with suppress(OSError):
                checkpoints[step].rename(removed)  # first: half of a checkpoint must not look like one
            shutil.rmtree(removed, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Removes what a killed process had half written or half removed. Puts back a checkpoint that it was replacing."""
    for folder in [folder for folder in (run / CHECKPOINTS).glob("step-*") if folder.suffix in LEFT]:
        if folder.suffix == REPLACED:
            recover_folder(folder.with_suffix(""))
        shutil.rmtree(folder, ignore_errors=True)


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
