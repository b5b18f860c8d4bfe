"""The frozen reference policy: a copy of everything that trains, as it was when training began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gotr1_core.engine.dtensor import local


class Reference:
    """Holds copies of a module's trainable parameters and lends them to it.

    A copy, and not "the adapter switched off": an adapter that continues an earlier training does not begin at zero, and heads
    may train beside it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._pairs = [(p, local(p.detach()).clone()) for p in module.parameters() if p.requires_grad]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the module answers as the reference, without gradients."""
        with torch.no_grad():
            self._swap()
            try:
                yield
            finally:
                self._swap()

    def _swap(self) -> None:
        for parameter, frozen in self._pairs:
            current = local(parameter.detach())
            spare = current.clone()
            current.copy_(frozen)  # in place: a sharded module gathers from this memory, whatever its parameters refer to
            frozen.copy_(spare)
