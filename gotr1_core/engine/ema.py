"""The exponential moving average (EMA) of what trains: rollouts are the policy's own, evaluation and export are the average's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from gotr1_core.engine.dtensor import local, shard_like
from gotr1_core.engine.tensors import read_tensors


class EMA:
    """Averages of a module's trainable parameters over its updates, in float32 where the parameters are less: steps are small.

    It begins as what the parameters are. Of update n it keeps ``min(decay, (1 + n) / (10 + n))``, as diffusers' EMAModel and Flow-GRPO do
    (arXiv 2505.05470): a share of the start that does not fade in a short run would hold the average back. torch's own AveragedModel
    copies frozen weights too, and the core has no diffusers.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.restart()

    def restart(self) -> None:
        """Begins anew, with the parameters as they are."""
        self.tensors = {name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for name, p in self.parameters.items()}

    def follow(self, updates: int) -> None:
        """Takes in the parameters as they are after their ``updates``-th update, counted from 1."""
        kept = min(self.decay, (1 + updates) / (10 + updates))
        for name, average in self.tensors.items():
            average.lerp_(self.parameters[name].detach().to(average.device, average.dtype), 1 - kept)

    def resume(self, path: Path) -> None:
        """Goes on with what a checkpoint kept; from the parameters as they are where it kept none, as of a run that had no average."""
        if not path.is_file():
            self.restart()
            return
        saved = read_tensors(path)
        for name, average in self.tensors.items():
            average.copy_(shard_like(saved[name], average))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the module has the averages in place of its parameters. That is one more copy of what trains."""
        with torch.no_grad():
            trained = {name: local(p.detach()).clone() for name, p in self.parameters.items()}
            self._put(self.tensors)
        try:
            yield
        finally:
            with torch.no_grad():
                self._put(trained)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            local(parameter.detach()).copy_(local(tensors[name]))
