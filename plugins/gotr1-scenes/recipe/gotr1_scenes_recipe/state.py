"""What a recipe's own training loop leaves on disk, so that a broken run goes on where it was. What ``gotr1 sft`` trains has its own."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gotr1_core.engine.tensors import load_optimizer_tensors, optimizer_tensors

STATE, MODEL = "state.safetensors", "model."


def save(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """All that resuming needs, which is in place only when whole."""
    kept = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # tied weights once
    weights = {MODEL + name: tensor.contiguous() for name, tensor in model.state_dict().items() if name in kept}
    part = out / "state.part"
    save_file(optimizer_tensors(optimizer) | weights | {"at": torch.tensor(step)}, part)
    part.replace(out / STATE)


def resume(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Restores what :func:`save` wrote, if anything, as far as the model has it; returns the step to go on with."""
    if not (out / STATE).is_file():
        return 0
    state = load_file(out / STATE)
    step = int(state.pop("at"))
    model.load_state_dict({name.removeprefix(MODEL): state.pop(name) for name in list(state) if name.startswith(MODEL)}, strict=False)
    if optimizer is not None:
        load_optimizer_tensors(optimizer, state)
    return step
