"""Planner ``file``: reads existing chains, to draw them or to train a renderer alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from gotr1_core.chain import Chain, parse
from gotr1_core.engine.files import read_lines
from gotr1_core.errors import UsageError
from gotr1_core.policies.tokenization import shorten
from gotr1_core.protocols import Loss
from gotr1_core.samples import PLAN, Example, Prompt, Rollout, Sampling
from gotr1_qwen.options import FileOptions

_LINES = 'one {"prompt": "…", "chain": "…"} per line, as in the samples.jsonl of gotr1 generate'


class FilePlanner:
    """Returns chains from a JSONL file. It samples no tokens, so there are no actions and there is nothing to train."""

    lora_prefix = ""

    def __init__(self, options: FileOptions, *, device: torch.device | str = "cpu") -> None:
        self.path, self.device = options.chains, device
        self.chains = read_chains(options.chains, key="chains")
        self.module = nn.Module()

    @staticmethod
    def preflight(options: FileOptions, *, key: str = "planner") -> dict[str, int]:
        """Reads the file, so that a missing or damaged one is reported before the run. Returns no sizes. ``key`` is for messages."""
        read_chains(options.chains, key=f"{key}.chains")
        return {}

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
            return self.chains[prompt.text.strip()]
        except KeyError:
            hint = f"add a line for it: {_LINES}"
            raise UsageError(f"{self.path} has no chain for the prompt {shorten(prompt.text, 200)}", hint=hint) from None

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


def _nothing_to_train() -> NoReturn:
    raise UsageError("the planner file has nothing to train", hint="train another planner, such as qwen")


def read_chains(path: Path, *, key: str) -> dict[str, tuple[Chain, ...]]:
    """The chains of a JSONL file by prompt, in the order of the file. ``key`` is the file's place in the config, for messages.

    Raises:
        UsageError: the file cannot be read or has no chains, or a line is not a prompt with a chain or a list of chains.
    """
    chains_by_prompt: dict[str, list[Chain]] = {}
    for number, line in read_lines(path, hint=f"give a JSONL file: {_LINES}", key=key):
        prompt, chains = _read_line(line, f"{key}: {path}, line {number}")
        chains_by_prompt.setdefault(prompt, []).extend(chains)
    if not chains_by_prompt:
        raise UsageError(f"{key}: {path} has no chains", hint=f"give a JSONL file: {_LINES}")
    return {prompt: tuple(chains) for prompt, chains in chains_by_prompt.items()}


def _read_line(line: str, where: str) -> tuple[str, list[Chain]]:
    try:
        row = json.loads(line)
        prompt, chains = row["prompt"], row["chain"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{where} has no prompt and chain", hint=f"write {_LINES}") from None
    chains = chains if isinstance(chains, list) else [chains]
    if not isinstance(prompt, str) or not chains or not all(isinstance(chain, str) for chain in chains):
        raise UsageError(f"{where}: prompt and chain must be texts", hint=f"write {_LINES}")
    return prompt.strip(), [parse(chain) for chain in chains]
