"""engine.tensors"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gotr1_core.engine.dtensor import full, shard_like
from gotr1_core.errors import UsageError


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
            parameter.copy_(shard_like(saved[name], parameter))


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
        state.setdefault(int(number), {})[name] = shard_like(value, parameters[int(number)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
