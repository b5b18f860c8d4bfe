"""Planner ``openai``: a model behind a server writes the plans, to draw them or to train a renderer alone. It does not train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from gotr1_core.chain import parse
from gotr1_core.engine.files import read_text
from gotr1_core.engine.interrupts import Paused
from gotr1_core.errors import UsageError
from gotr1_core.protocols import Loss
from gotr1_core.samples import PLAN, Example, Prompt, Rollout, Sampling
from gotr1_judges.asking import NoAnswer
from gotr1_served.answerer import CHAT, Style, harmless
from gotr1_served.client import Request
from gotr1_served.connect import close_checked, count_checks, make_client, process_of_run
from gotr1_served.failures import Failure, Reply
from gotr1_served.judge import make_style, spent_counts
from gotr1_served.options import OpenAIPlannerOptions
from gotr1_served.pictures import FAMILIES, PictureFormat
from gotr1_served.probe import find_model
from gotr1_served.replies import is_cut, read_answer, written_text

FIELD = "{prompt}"
"""Stands for the prompt in an instruction."""


class OpenAIPlanner:
    """Writes chains with a model behind a server. Log-probabilities are not known, so there is nothing to train.

    Raises:
        UsageError: the key is not set, the server does not answer, or the instruction cannot be read.
    """

    lora_prefix = ""
    trainable = False

    def __init__(self, options: OpenAIPlannerOptions, *, device: torch.device | str = "cpu") -> None:
        self.instruction, self.device = read_served_instruction(options.instruction, "planner.instruction"), device
        self.processes = process_of_run()
        self.client = make_client(options, "planner", self.processes)
        model = find_model(self.client, options.model, "planner")
        count_checks(self.client, model, self.processes[0])
        self.style = make_style(options, model, PictureFormat(28, FAMILIES["other"]))
        self.module = nn.Module()

    @staticmethod
    def preflight(options: OpenAIPlannerOptions, *, key: str = "planner") -> dict[str, int]:
        """Checks instruction and key, and asks the server for its models and one question. Returns no sizes.

        Raises:
            UsageError: as the class.
        """
        read_served_instruction(options.instruction, f"{key}.instruction")
        client = make_client(options, key)
        style = make_style(options, find_model(client, options.model, key), PictureFormat(28, FAMILIES["other"]))
        try:
            (reply,) = client.ask([Request(CHAT, partial(style.chat, "Say hello in one word.", None, 8))], again=False)
        except Paused as error:
            raise UsageError(f"{key}: {error.message}", hint=error.hint) from None
        if isinstance(reply, Failure):
            hint = "look at the server's own messages; some models want temperature=null or another limit_key"
            raise UsageError(f"{key}: {options.base_url} does not answer a question: {reply.text}", hint=hint)
        close_checked(client, style.model)
        return {}

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """One chain per prompt and seed, sampled at the sampling's temperature. The server gets the seed, and may ignore it.

        A chain that was cut counts as truncated. What a model wrote instead of a plan is its plan, with nothing marked.

        Raises:
            Paused: a plan could not be had.
        """
        requests = [Request(CHAT, partial(self._body, p, seed, sampling)) for p, seed in zip(prompts, seeds, strict=True)]
        replies = self.client.ask(requests)
        failures = [reply for reply in replies if isinstance(reply, Failure)]
        if failures:
            message = f"{len(failures)} of {len(replies)} plans could not be had: {failures[0].kind.value}, {failures[0].text}"
            raise Paused(message, hint="look at the server")
        data = [reply.data for reply in replies if isinstance(reply, Reply)]
        chains = tuple(parse(_plan_text(row)) for row in data)
        zeros = torch.zeros(len(chains), 1, device=self.device)
        truncated = torch.tensor([is_cut(row) for row in data], dtype=torch.bool, device=self.device)
        return Rollout(PLAN, sampling, {"mask": zeros.bool(), "log_prob": zeros, "truncated": truncated}, chains=chains)

    def _body(self, prompt: Prompt, seed: int, sampling: Sampling) -> dict[str, Any]:
        text = self.instruction.replace(FIELD, harmless(prompt.text))
        style: Style = self.style if self.style.temperature is None else replace(self.style, temperature=sampling.temperature)
        return style.chat(text, None, sampling.max_chain_tokens, seed=seed % 2**31)

    def counts(self) -> Mapping[str, float]:
        """Returns what the run has spent so far, by unit, and its requests without a reply."""
        return spent_counts(self.client)

    def join_run(self, folder: Path, *, name: str) -> None:
        """Keeps the account in a run's folder."""
        self.client.ledger.join(folder, name, *self.processes)

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """Raises `UsageError`: there is nothing to train."""
        _untrainable()

    def enable_gradient_checkpointing(self) -> None:
        """Does nothing: there are no activations."""

    def save(self, folder: Path) -> None:
        """Raises `UsageError`: there is nothing to save."""
        _untrainable()

    def save_adapter(self, folder: Path) -> None:
        """Raises `UsageError`: there is nothing to save."""
        _untrainable()


def read_served_instruction(name: str, key: str) -> str:
    """Returns the text of the version ``v1``, or of a file that has ``{prompt}`` once. ``key`` is the option's place in the config.

    Raises:
        UsageError: the file cannot be read, or does not have ``{prompt}`` exactly once.
    """
    if name == "v1":
        return files("gotr1_served").joinpath("instructions", "v1.txt").read_text(encoding="utf-8").rstrip("\n")
    text = read_text(Path(name), hint="give a text file, or v1", key=key).rstrip("\n")
    if (count := text.count(FIELD)) != 1:
        raise UsageError(f"{key}: {name} has {FIELD} {count} times", hint="write it once, where the prompt goes")
    return text


def _plan_text(data: Mapping[str, Any]) -> str:
    text = read_answer(data)
    text = written_text(data) if isinstance(text, NoAnswer) else text
    return text.strip()


def _untrainable() -> NoReturn:
    raise UsageError("the planner openai has nothing to train", hint="set train=renderer, or choose another planner, such as qwen")
