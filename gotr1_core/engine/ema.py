"""The exponential moving average (EMA) of trainable parameters. Rollouts use the parameters; evaluation and export use the average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from gotr1_core.engine.dtensor import local_tensor, shard_like
from gotr1_core.engine.tensors import read_tensors


class EMA:
    """Averages a module's trainable parameters over its updates. The average is at least float32, because its steps are small.

    It starts as a copy of the parameters. At update n, ``average = d * average + (1 - d) * parameter`` with
    ``d = min(decay, (1 + n) / (10 + n))``, as in diffusers' EMAModel and Flow-GRPO (arXiv 2505.05470). With a constant d the start would
    not fade in a short run. torch's own AveragedModel copies frozen weights too, and the core does not depend on diffusers.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.reset()

    def reset(self) -> None:
        """Sets the average to the current parameters."""
        self.tensors = {name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for name, p in self.parameters.items()}

    def update(self, updates: int) -> None:
        """Moves the average towards the parameters after their ``updates``-th update, counted from 1."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, average in self.tensors.items():
            average.lerp_(self.parameters[name].detach().to(average.device, average.dtype), 1 - decay)

    def load(self, path: Path) -> None:
        """Loads the average from a checkpoint's file. If there is none, as in a run without EMA, starts from the current parameters."""
        if not path.is_file():
            self.reset()
            return
        saved = read_tensors(path)
        for name, average in self.tensors.items():
            average.copy_(shard_like(saved[name], average))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the module's parameters have the averaged values. This needs memory for one more copy of them."""
        with torch.no_grad():
            trained = {name: local_tensor(p.detach()).clone() for name, p in self.parameters.items()}
            self._copy_in(self.tensors)
        try:
            yield
        finally:
            with torch.no_grad():
                self._copy_in(trained)

    def _copy_in(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            local_tensor(parameter.detach()).copy_(local_tensor(tensors[name]))
