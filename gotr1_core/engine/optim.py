"""The optimizer of a policy, its learning-rate schedule and gradient clipping, for both RL and supervised fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gotr1_core.config.models import OptimizerConfig
from gotr1_core.engine.collectives import any_process
from gotr1_core.engine.dtensor import full_tensor


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Makes AdamW for the trainable parameters. Weight decay is 0 for vectors (norms, biases)."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas)


def learning_rate_at(config: OptimizerConfig, step: int, steps: int) -> float:
    """Returns the learning rate of update ``step``: linear warm-up, then constant, or linear or cosine decay to its ``floor`` fraction."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[config.schedule]
    return config.learning_rate * (config.floor + (1 - config.floor) * shape)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, steps: int) -> float:
    """Sets the learning rate of update ``step`` and returns it; a parameter group's ``factor`` multiplies it."""
    rate = learning_rate_at(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    return rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Clips the global gradient norm to ``limit`` and returns the norm before clipping, a scalar."""
    return full_tensor(torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], limit))


def step_if_finite(accelerator: Accelerator, optimizer: torch.optim.Optimizer, norms: Sequence[Tensor]) -> bool:
    """Takes an optimizer step if every gradient norm (a scalar) is finite on all processes. Returns whether it was taken; clears gradients.

    A step that is not taken leaves weights and moments as they were. In fp16 it lowers the loss scale, as a step would.
    """
    finite = not any_process(accelerator, not all(bool(norm.isfinite()) for norm in norms))
    if finite:
        optimizer.step()
    elif accelerator.scaler is not None:
        accelerator.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return finite


def move_optimizer_state(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Moves the moments to a device. The step counts stay on the CPU, where AdamW needs them."""
    for state in optimizer.state.values():
        state.update({name: value.to(device) for name, value in state.items() if isinstance(value, Tensor) and name != "step"})
