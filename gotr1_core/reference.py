"""The frozen reference policy: a copy of everything that trains, as it was when training began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gotr1_core.engine.dtensor import local_tensor


class Reference:
    """Keeps copies of a module's trainable parameters, and swaps them in when the reference is needed.

    Switching the adapter off would not do: one that continues an earlier training does not begin at zero, and heads may train beside it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._pairs = [(p, local_tensor(p.detach()).clone()) for p in module.parameters() if p.requires_grad]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block the module computes with the reference's parameters, without gradients."""
        with torch.no_grad():
            self._swap()
            try:
                yield
            finally:
                self._swap()

    def _swap(self) -> None:
        for parameter, frozen in self._pairs:
            current = local_tensor(parameter.detach())
            spare = current.clone()
            current.copy_(frozen)  # in place: a sharded module gathers from this memory, whatever its parameters refer to
            frozen.copy_(spare)
