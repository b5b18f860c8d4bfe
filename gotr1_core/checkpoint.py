"""What a run keeps on disk: safetensors and JSON only, written beside its place and renamed when whole.

::

    checkpoints/step-000050/  planner/trainable.safetensors  planner/optimizer.safetensors  state.json  manifest.json

``manifest.json`` lists every other file with its size and SHA-256 and is written last; what has no valid manifest is no checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.shares import alike, full

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

STATE, MANIFEST = "state.json", "manifest.json"
TRAINABLE, OPTIMIZER, CRITIC = "trainable.safetensors", "optimizer.safetensors", "critic.safetensors"
EMA = "ema.safetensors"
CHECKPOINTS = "checkpoints"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``folder`` when the block ends well, and leaves no trace when it does not."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    recover(folder)
    try:
        part.mkdir(parents=True)
        yield part
        _sync(part)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        code = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
        if code:  # a full disk is the same error whoever writes
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error
        raise
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Puts back what a process that was killed while it replaced ``folder`` had moved out of the way."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Has the operating system write a folder's files out, so that a rename cannot reach the disk before they do."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="put it back as it was") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged: it is no JSON object", hint="put it back as it was")
    return found


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


def trainable(module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """The parameters that train, by name, on the CPU. Of a sharded module all processes have to ask; one may not ``keep`` what it hears."""
    return collected({name: p.detach() for name, p in module.named_parameters() if p.requires_grad}, keep=keep)


def collected(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Tensors, whole and on the CPU, as :func:`trainable`."""
    found = {}
    for name, tensor in tensors.items():  # one after the other: no more than one of them is whole on the GPU
        whole = full(tensor)
        if keep:
            found[name] = whole.cpu().contiguous()
    return found


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all parameters, frozen ones too: tells whether a run would go on from another model than it began with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(full(tensor.detach()).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file of a checkpoint."""
    if not path.is_file():
        raise UsageError(
            f"{path.parent} is not a checkpoint: {path.name} is missing", hint="give the folder of a run, or of one of its checkpoints"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="put it back as it was, or use another checkpoint") from None


def load_trainable(module: nn.Module, path: Path) -> None:
    """Puts saved parameters back; every one that trains must be there, with its shape, and no other."""
    saved = read_tensors(path)
    mine = {name: p for name, p in module.named_parameters() if p.requires_grad}
    wrong = sorted(n for n in mine.keys() ^ saved.keys()) or [n for n, p in mine.items() if p.shape != saved[n].shape]
    if wrong:
        raise UsageError(f"{path} does not fit the model: {wrong[0]} and {len(wrong) - 1} more", hint="use the run's own config")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(alike(saved[name], parameter))


def optimizer_tensors(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Tensor]:
    """An optimizer's state as named tensors, as :func:`trainable`."""
    state = optimizer.state_dict()["state"]
    return collected({f"{i}.{name}": value.detach() for i, values in state.items() for name, value in values.items()}, keep=keep)


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = alike(value, parameters[int(number)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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
