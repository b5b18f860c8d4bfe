"""Trainable parameters and optimizer states as named tensors on the CPU: gathered, hashed, read and loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gotr1_core.engine.dtensor import full_tensor, shard_like
from gotr1_core.errors import NOT_FINITE_HINT, Gotr1Error, UsageError


def trainable_tensors(module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """Returns the trainable parameters by name, each in its shape; see :func:`gather_to_cpu`."""
    return gather_to_cpu({name: p.detach() for name, p in module.named_parameters() if p.requires_grad}, keep=keep)


def gather_to_cpu(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Copies tensors of any shape to the CPU, in full: every process must call it. One that needs no result passes ``keep=False``."""
    gathered = {}
    for name, tensor in tensors.items():  # one at a time, so that the GPU holds at most one of them in full
        full = full_tensor(tensor)
        if keep:
            gathered[name] = full.cpu().contiguous()
    return gathered


def fingerprint(module: nn.Module) -> str:
    """Returns the SHA-256 of all parameters, frozen ones too. It tells whether a resumed run has the model that it started with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(full_tensor(tensor.detach()).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor (of any shape) that has a NaN or an infinite number; None if all are finite."""
    return next((name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()), None)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors of any shape into a safetensors file of a checkpoint.

    Raises:
        Gotr1Error: a tensor is not finite. Nothing could be learned from such a checkpoint.
    """
    if name := first_not_finite(tensors):
        message = f"no checkpoint is written: {name} of {path.parent.name}/{path.name} has a number that is not finite"
        raise Gotr1Error(message, hint=f"an earlier checkpoint is whole; {NOT_FINITE_HINT}")
    save_file(dict(tensors), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file of a checkpoint: tensors of any shape by name.

    Raises:
        UsageError: the file is missing or damaged, or one of its numbers is not finite.
    """
    if not path.is_file():
        raise UsageError(
            f"{path.parent} is not a checkpoint: {path.name} is missing", hint="give the folder of a run, or of one of its checkpoints"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="restore the original file, or use another checkpoint") from None
    if name := first_not_finite(tensors):
        raise UsageError(f"{path} cannot be used: its {name} has a number that is not finite", hint="use an earlier checkpoint")
    return tensors


def load_trainable(module: nn.Module, path: Path) -> None:
    """Loads saved parameters into a module.

    Raises:
        UsageError: the file is missing or damaged, or its names and shapes are not those of the trainable parameters.
    """
    saved = read_tensors(path)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    misfits = sorted(n for n in parameters.keys() ^ saved.keys()) or [n for n, p in parameters.items() if p.shape != saved[n].shape]
    if misfits:
        raise UsageError(f"{path} does not fit the model: {misfits[0]} and {len(misfits) - 1} more", hint="use the run's own config")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(shard_like(saved[name], parameter))


def optimizer_tensors(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Tensor]:
    """Returns an optimizer's state as tensors, moments shaped like their parameters, named ``NUMBER.NAME``; see :func:`gather_to_cpu`."""
    state = optimizer.state_dict()["state"]
    return gather_to_cpu({f"{i}.{name}": value.detach() for i, values in state.items() for name, value in values.items()}, keep=keep)


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads the state that :func:`optimizer_tensors` returned; moments are shaped like their parameters.

    Raises:
        UsageError: they are not the state of such an optimizer.
    """
    state: dict[int, dict[str, Tensor]] = {}
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for key, value in tensors.items():
        text, _, name = key.partition(".")
        number = int(text) if text.isascii() and text.isdigit() else -1
        if number not in parameters or not name or value.shape not in (parameters[number].shape, ()):
            raise UsageError(f"the optimizer's state does not fit the model: {key[:100]}", hint="use another checkpoint of the run")
        state.setdefault(number, {})[name] = shard_like(value, parameters[number])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
