"""Whether a prompt and its chain fit into a model's context, told before anything is sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gotr1_core.chain import Chain
from gotr1_core.errors import UsageError
from gotr1_core.policies.tokenization import Text, shown


@dataclass(frozen=True)
class Window:
    """A model's context in positions, how many of them something else takes and what, and how text becomes tokens."""

    text: Text
    context: int
    taken: int = 0
    taken_by: str = ""

    @property
    def room(self) -> int:
        """Tokens that prompt and chain have together."""
        return self.context - self.taken

    def encode(self, prompt: str, chain: Chain | int) -> tuple[Tensor, Tensor]:
        """Ids of a prompt and of the chain written for it; an integer leaves room for one of so many tokens.

        Raises:
            UsageError: they do not fit; says how long they are, and what would fit.
        """
        # Bounds first: a tokenizer may take minutes over a text that is megabytes long.
        raw = chain.raw if isinstance(chain, Chain) else ""
        for name, text in (("prompt", prompt), ("chain", raw)):
            if (least := self.text.at_least(text)) > self.room:
                raise self._error(f"the {name} {shown(text)} has at least {least} tokens", f"shorten it to less than {self.room} tokens")
        asked, written = self.text.encode_prompt(prompt), self.text.encode_chain(raw)
        self._check(prompt, len(asked), chain if isinstance(chain, int) else len(written), given=isinstance(chain, Chain))
        return torch.tensor(asked), torch.tensor(written, dtype=torch.long)

    def _check(self, prompt: str, tokens: int, chain: int, *, given: bool) -> None:
        if tokens + chain <= self.room:
            return
        counted, fit = ("its chain", "shorten the chain to {} tokens") if given else ("a chain up to", "set sampling.max_chain_tokens={}")
        hints = [fit.format(self.room - tokens)] if tokens < self.room else []
        hints += [f"shorten the prompt by {tokens + chain - self.room} tokens"] if chain + self._frame < self.room else []
        what = f"the prompt {shown(prompt)} has {tokens} tokens with its instruction, and {counted} {chain}"
        raise self._error(what, ", or ".join(hints) or f"prompt and chain have {self.room} tokens together")

    @property
    def _frame(self) -> int:
        """Tokens of template and instruction."""
        return len(self.text.encode_prompt("a")) - 1

    def _error(self, what: str, hint: str) -> UsageError:
        beside = f" with {self.taken_by}" if self.taken else ""
        return UsageError(f"{what}: too long for the model's context of {self.context}{beside}", hint=hint)
