"""Algorithms with state, for tests: each reward is compared with a running mean of all rewards so far, and not with its group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gotr1_core.advantages import Advantages
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_rl.grpo import Grpo, GrpoOptions


class Forgetful(Grpo):
    """Keeps its mean to itself, so that no checkpoint has it."""

    compares_groups = False

    def __init__(self, options: None = None) -> None:
        del options
        super().__init__(GrpoOptions())
        self.mean = torch.full((), 0.5, dtype=torch.float64)
        self.seen = 0

    def advantages(self, rewards: Tensor) -> Advantages:
        known = rewards.nan_to_num(nan=self.mean.item())
        image = known.double() - self.mean
        self.mean = self.mean + 0.3 * image.mean()
        self.seen += 1
        return Advantages(image.mean(-1), image)


class RunningBaseline(Forgetful):
    """The same with a state that checkpoints hold: a tensor, a number, and a list."""

    def state_dict(self) -> Mapping[str, Any]:
        return {"mean": self.mean, "seen": self.seen, "history": [{"seen": self.seen}]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.seen = state["mean"], state["seen"]
        assert state["history"] == [{"seen": self.seen}]


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("algorithm", "baseline", f"{__name__}:RunningBaseline")
    yield Component("algorithm", "forgetful", f"{__name__}:Forgetful")
