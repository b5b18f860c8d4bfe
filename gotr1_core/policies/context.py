"""Checks that a prompt and its chain fit into a model's context, before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gotr1_core.chain import Chain
from gotr1_core.errors import UsageError
from gotr1_core.policies.tokenization import ChatText, shorten


@dataclass(frozen=True)
class ContextWindow:
    """A model's context in tokens, of which ``reserved`` are for something else (``reserved_for``, for messages), and its tokenizer."""

    text: ChatText
    context: int
    reserved: int = 0
    reserved_for: str = ""

    def __post_init__(self) -> None:
        if self.context <= 0:
            raise UsageError(
                f"the model's config gives it a context of {self.context} tokens", hint="correct max_position_embeddings in it"
            )

    @property
    def room(self) -> int:
        """Tokens that prompt and chain can have together."""
        return self.context - self.reserved

    def encode(self, prompt: str, chain: Chain | int) -> tuple[Tensor, Tensor]:
        """Returns the ids of a prompt ``[P]`` and of its chain ``[T]``. An integer ``chain`` reserves that many tokens; its ids are empty.

        Raises:
            UsageError: they do not fit; says how long they are, and what would fit.
        """
        # Check lower bounds first: a tokenizer may take minutes for a text of megabytes.
        raw = chain.raw if isinstance(chain, Chain) else ""
        for name, text in (("prompt", prompt), ("chain", raw)):
            if (minimum := self.text.min_tokens(text)) > self.room:
                raise self._error(
                    f"the {name} {shorten(text)} has at least {minimum} tokens", f"shorten it to less than {self.room} tokens"
                )
        prompt_ids, chain_ids = self.text.encode_prompt(prompt), self.text.encode_chain(raw)
        length = chain if isinstance(chain, int) else len(chain_ids)
        self._check(prompt, len(prompt_ids), length, is_written=isinstance(chain, Chain))
        return torch.tensor(prompt_ids), torch.tensor(chain_ids, dtype=torch.long)

    def check(self, prompts: Iterable[str], chain: int) -> None:
        """Checks that every prompt fits, with a chain of that many tokens. Raises a `UsageError` as :meth:`encode`.

        Most prompts are far shorter than the context. They are not tokenized, so a million take seconds.
        """
        unsure = dict.fromkeys(
            prompt for prompt in prompts if (most := self.text.max_prompt_tokens(prompt)) is None or most + chain > self.room
        )
        for prompt in unsure:
            self.encode(prompt, chain)

    def _check(self, prompt: str, tokens: int, chain: int, *, is_written: bool) -> None:
        if tokens + chain <= self.room:
            return
        template = len(self.text.encode_prompt("a")) - 1  # tokens of template and instruction
        shorter = "shorten the chain to {} tokens" if is_written else "set sampling.max_chain_tokens={}"
        counted = "its chain" if is_written else "a chain up to"
        hints = [shorter.format(self.room - tokens)] if tokens < self.room else []
        hints += [f"shorten the prompt by {tokens + chain - self.room} tokens"] if chain + template < self.room else []
        problem = f"the prompt {shorten(prompt)} has {tokens} tokens with its instruction, and {counted} {chain}"
        raise self._error(problem, ", or ".join(hints) or f"prompt and chain can have {self.room} tokens together")

    def _error(self, problem: str, hint: str) -> UsageError:
        beside = f" with {self.reserved_for}" if self.reserved else ""
        return UsageError(f"{problem}: too long for the model's context of {self.context}{beside}", hint=hint)
