"""What a run keeps on disk: safetensors and JSON only, written beside its place and renamed when whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from gotr1_core.errors import Gotr1Error, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

STATE = "state.json"
TRAINABLE = "trainable.safetensors"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``folder`` when the block ends well, and leaves no trace when it does not."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name, on the CPU."""
    return {name: p.detach().cpu().contiguous() for name, p in module.named_parameters() if p.requires_grad}


def load_trainable(module: nn.Module, path: Path) -> None:
    """Puts saved parameters back; every one that trains must be there, with its shape, and no other."""
    if not path.is_file():
        raise UsageError(
            f"{path.parent} is not a checkpoint: {path.name} is missing", hint="give the folder of a run, or of one of its checkpoints"
        )
    try:
        saved = load_file(path)
    except Exception as error:  # safetensors raises its own error type for a torn file
        raise UsageError(f"{path} is damaged: {error}", hint="use another checkpoint of the run") from None
    mine = {name: p for name, p in module.named_parameters() if p.requires_grad}
    wrong = sorted(n for n in mine.keys() ^ saved.keys()) or [n for n, p in mine.items() if p.shape != saved[n].shape]
    if wrong:
        raise UsageError(f"{path} does not fit the model: {wrong[0]} and {len(wrong) - 1} more", hint="use the run's own config")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(saved[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value.detach().cpu().contiguous() for i, values in state.items() for name, value in values.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, modules: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
    """What trains of every module, and the JSON-ready state beside it."""
    with replacing(folder) as part:
        for name, module in modules.items():
            (part / name).mkdir()
            save_file(trainable(module), part / name / TRAINABLE)
        (part / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{folder} is not a checkpoint", hint="give the folder of a run, or of one of its checkpoints") from None
    if not isinstance(state, dict):
        raise Gotr1Error(f"{folder / STATE} is damaged", hint="use another checkpoint of the run")
    return state
