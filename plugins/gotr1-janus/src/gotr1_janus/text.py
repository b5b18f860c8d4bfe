"""Janus's conversation. What somebody wrote stays text, see :mod:`gotr1_core.policies.tokenization`."""

from __future__ import annotations

from typing import Any

from gotr1_core.policies import tokenization
from gotr1_core.policies.tokenization import MARK, TAGS


class Text(tokenization.Text):
    """A tokenizer with its chat template, filled in with the instruction."""

    def __init__(self, tokenizer: Any, instruction: str) -> None:
        message = [{"role": "user", "content": [{"type": "text", "text": instruction.format(prompt=MARK)}]}]
        super().__init__(tokenizer, tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False), tags=TAGS)
