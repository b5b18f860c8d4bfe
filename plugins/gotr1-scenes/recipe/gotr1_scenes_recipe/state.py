"""Checkpoints of the recipe's own training loops, so that an interrupted run continues. Runs of ``gotr1 sft`` have their own."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gotr1_core.engine.tensors import load_optimizer, optimizer_tensors

STATE, MODEL = "state.safetensors", "model."


def save(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Saves what resuming needs. The file gets its final name only when it is complete."""
    unique = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # tied weights only once
    weights = {MODEL + name: tensor.contiguous() for name, tensor in model.state_dict().items() if name in unique}
    incomplete = out / "state.part"
    save_file(optimizer_tensors(optimizer) | weights | {"at": torch.tensor(step)}, incomplete)
    incomplete.replace(out / STATE)


def resume(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Restores what :func:`save` wrote and returns the next step, which is 0 without a file. Weights that the model lacks are ignored."""
    if not (out / STATE).is_file():
        return 0
    state = load_file(out / STATE)
    step = int(state.pop("at"))
    model.load_state_dict({name.removeprefix(MODEL): state.pop(name) for name in list(state) if name.startswith(MODEL)}, strict=False)
    if optimizer is not None:
        load_optimizer(optimizer, state)
    return step
