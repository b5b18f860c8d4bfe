"""Planner ``file``: reads existing chains, to draw them or to train a renderer alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from gotr1_core.chain import Chain
from gotr1_core.data.chains import LINES, read_chains
from gotr1_core.errors import UsageError
from gotr1_core.policies.tokenization import shorten
from gotr1_core.protocols import Loss
from gotr1_core.samples import PLAN, Example, Prompt, Rollout, Sampling
from gotr1_qwen.options import FileOptions


class FilePlanner:
    """Returns chains from a file. It samples no tokens, so there are no actions and there is nothing to train."""

    lora_prefix = ""
    trainable = False

    def __init__(self, options: FileOptions, *, device: torch.device | str = "cpu") -> None:
        self.path, self.device = options.chains, device
        self.chains = read_chains(options.chains, key="chains")
        self.module = nn.Module()

    @staticmethod
    def preflight(options: FileOptions, *, key: str = "planner") -> dict[str, int]:
        """Reads the file, so that a missing or damaged one is reported before the run. Returns no sizes. ``key`` is for messages."""
        read_chains(options.chains, key=f"{key}.chains")
        return {}

    @staticmethod
    def preflight_prompts(options: FileOptions, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Checks that the file has a chain for every prompt, before anything is loaded.

        Raises:
            UsageError: a prompt has no chain. It is named.
        """
        del sampling
        chains = read_chains(options.chains, key="planner.chains")
        for prompt in prompts:
            if prompt.key not in chains:
                raise _no_chain(options.chains, prompt)

    def check_prompts(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Checks that the file has a chain for every prompt. Raises a `UsageError` that names one without."""
        del sampling
        for prompt in prompts:
            self._chains_of(prompt)

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """One chain per prompt and seed. If a prompt has several chains, the seed selects one: number ``seed`` modulo their count."""
        candidates = [self._chains_of(prompt) for prompt in prompts]
        chains = tuple(of_prompt[seed % len(of_prompt)] for of_prompt, seed in zip(candidates, seeds, strict=True))
        zeros = torch.zeros(len(chains), 1, device=self.device)
        truncated = torch.zeros(len(chains), dtype=torch.bool, device=self.device)
        return Rollout(PLAN, sampling, {"mask": zeros.bool(), "log_prob": zeros, "truncated": truncated}, chains=chains)

    def _chains_of(self, prompt: Prompt) -> tuple[Chain, ...]:
        try:
            return self.chains[prompt.key]
        except KeyError:
            raise _no_chain(self.path, prompt) from None

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """Raises `UsageError`: there is nothing to train."""
        _nothing_to_train()

    def enable_gradient_checkpointing(self) -> None:
        """Does nothing: there are no activations."""

    def save(self, folder: Path) -> None:
        """Raises `UsageError`: there is nothing to save."""
        _nothing_to_train()

    def save_adapter(self, folder: Path) -> None:
        """Raises `UsageError`: there is nothing to save."""
        _nothing_to_train()


def _no_chain(path: Path, prompt: Prompt) -> UsageError:
    return UsageError(f"{path} has no chain for the prompt {shorten(prompt.text, 200)}", hint=f"add a line for it: {LINES}")


def _nothing_to_train() -> NoReturn:
    raise UsageError("the planner file has nothing to train", hint="train another planner, such as qwen")
