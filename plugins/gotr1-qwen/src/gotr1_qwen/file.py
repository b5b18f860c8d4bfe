"""Planner ``file``: chains that are there already, for pictures of them and for training a renderer alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from gotr1_core.chain import Chain, parse
from gotr1_core.errors import UsageError
from gotr1_core.policies.tokenization import shown
from gotr1_core.protocols import Loss
from gotr1_core.samples import PLAN, Example, Prompt, Rollout, Sampling
from gotr1_qwen.options import FileOptions

_LINES = 'one {"prompt": "…", "chain": "…"} a line, as in the samples.jsonl of gotr1 generate'


class FilePlanner:
    """Hands out the chains of a JSONL file. Nothing is sampled: no token is an action, and there is nothing to train."""

    lora_prefix = ""

    def __init__(self, options: FileOptions, *, device: torch.device | str = "cpu") -> None:
        self.path, self.device = options.chains, device
        self.chains = read_chains(options.chains, key="chains")
        self.module = nn.Module()

    @staticmethod
    def preflight(options: FileOptions, *, key: str = "planner") -> dict[str, int]:
        """Refuses a file that is missing or damaged."""
        read_chains(options.chains, key=f"{key}.chains")
        return {}

    def check_prompts(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Refuses a prompt that the file has no chain for, with a `UsageError` that names it."""
        del sampling
        for prompt in prompts:
            self._chains_of(prompt)

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """A chain per prompt and seed; of several that a prompt has, the seed says which."""
        known = [self._chains_of(prompt) for prompt in prompts]
        chains = tuple(mine[seed % len(mine)] for mine, seed in zip(known, seeds, strict=True))
        nothing = torch.zeros(len(chains), 1, device=self.device)
        truncated = torch.zeros(len(chains), dtype=torch.bool, device=self.device)
        return Rollout(PLAN, sampling, {"mask": nothing.bool(), "log_prob": nothing, "truncated": truncated}, chains=chains)

    def _chains_of(self, prompt: Prompt) -> tuple[Chain, ...]:
        try:
            return self.chains[prompt.text.strip()]
        except KeyError:
            hint = f"add a line for it: {_LINES}"
            raise UsageError(f"{self.path} has no chain for the prompt {shown(prompt.text, 200)}", hint=hint) from None

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """There is none."""
        _nothing_to_train()

    def enable_gradient_checkpointing(self) -> None:
        """There is nothing to keep."""

    def save(self, folder: Path) -> None:
        """There is nothing to save."""
        _nothing_to_train()

    def save_adapter(self, folder: Path) -> None:
        """There is nothing to save."""
        _nothing_to_train()


def _nothing_to_train() -> NoReturn:
    raise UsageError("the planner file has nothing to train", hint="train another planner, such as qwen")


def read_chains(path: Path, *, key: str) -> dict[str, tuple[Chain, ...]]:
    """The chains of a file by their prompt, each prompt's in the order of the file. ``key`` is its place in the config, for messages.

    Raises:
        UsageError: the file cannot be read, or a line of it is no prompt with a chain, or with a list of them.
    """
    try:
        # Newlines alone end a line: a JSON string may hold any other separator.
        lines = path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"{key}: cannot read {path}: {error.strerror}", hint=f"give a JSONL file: {_LINES}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{key}: {path} is not UTF-8 text", hint=f"give a JSONL file: {_LINES}") from None
    found: dict[str, list[Chain]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt, chains = _row(line, f"{key}: {path}, line {number}")
            found.setdefault(prompt, []).extend(chains)
    if not found:
        raise UsageError(f"{key}: {path} has no chains", hint=_LINES)
    return {prompt: tuple(chains) for prompt, chains in found.items()}


def _row(line: str, where: str) -> tuple[str, list[Chain]]:
    try:
        row = json.loads(line)
        prompt, chains = row["prompt"], row["chain"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{where} has no prompt and chain", hint=_LINES) from None
    chains = chains if isinstance(chains, list) else [chains]
    if not isinstance(prompt, str) or not chains or not all(isinstance(chain, str) for chain in chains):
        raise UsageError(f"{where}: prompt and chain are texts", hint=_LINES)
    return prompt.strip(), [parse(chain) for chain in chains]
