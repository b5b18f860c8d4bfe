"""What a run keeps on disk: safetensors and JSON only, written beside its place and renamed when whole.

::

    checkpoints/step-000050/  planner/trainable.safetensors  planner/optimizer.safetensors  state.json  manifest.json

``manifest.json`` lists every other file with its size and SHA-256 and is written last; what has no valid manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.engine.files import NO_ROOM, read_json, replacing
from gotr1_core.errors import Gotr1Error, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


STATE, MANIFEST = "state.json", "manifest.json"
TRAINABLE, OPTIMIZER, CRITIC = "trainable.safetensors", "optimizer.safetensors", "critic.safetensors"
EMA_FILE = "ema.safetensors"
CHECKPOINTS = "checkpoints"


@contextmanager
def writing(folder: Path, *, again: str) -> Iterator[None]:
    """Says of a full disk what is safe and what to do: make room, then ``again``."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        safe = "".join(f"; the last checkpoint is {last}" for last in list(checkpoints(folder).values())[-1:])
        message = f"{error.filename or folder} cannot be written: {error.strerror}{safe}"
        raise Gotr1Error(message, hint=f"make room, then {again}") from error


# -- tensors ----------------------------------------------------------------------------------------------------------------


# -- checkpoints of a run ---------------------------------------------------------------------------------------------------


@contextmanager
def new_checkpoint(run: Path, step: int) -> Iterator[Path]:
    """A folder to write the checkpoint of a step into; the manifest is made, and the folder put in its place, when the block ends well."""
    with replacing(run / CHECKPOINTS / f"step-{step:06d}") as part:
        yield part
        files = sorted(path for path in part.rglob("*") if path.is_file())
        entries = {str(path.relative_to(part)): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
        (part / MANIFEST).write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path, *, deep: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None. Without ``deep`` only sizes are compared, which is quick."""
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


def checkpoints(run: Path) -> dict[int, Path]:
    """The whole checkpoints of a run by step, in order."""
    found = {}
    for folder in sorted((run / CHECKPOINTS).glob("step-*")):
        number = folder.name.removeprefix("step-")
        if number.isdigit() and damage(folder, deep=False) is None:
            found[int(number)] = folder
    return dict(sorted(found.items()))


def prune(run: Path, keep: int, best: int | None) -> None:
    """Removes all but the last ``keep`` checkpoints and the best one."""
    found = checkpoints(run)
    for step in list(found)[:-keep]:
        if step != best:
            shutil.rmtree(found[step], ignore_errors=True)


def read_state(folder: Path, *, deep: bool = True) -> dict[str, Any]:
    """The JSON state of a checkpoint, once the whole checkpoint is known to be what was saved (without ``deep`` by its sizes)."""
    if not (folder / STATE).is_file():
        raise UsageError(f"{folder} is not a checkpoint", hint="give the folder of a run, or of one of its checkpoints")
    problem = damage(folder, deep=deep)
    if problem:
        raise UsageError(f"{folder} is damaged: {problem}", hint="use another checkpoint of the run, or remove this one")
    return read_json(folder / STATE)
