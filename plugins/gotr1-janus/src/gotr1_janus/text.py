"""Janus's conversation as token ids. A user's text never becomes special tokens, see :mod:`gotr1_core.policies.tokenization`."""

from __future__ import annotations

from typing import Any

from gotr1_core.policies import tokenization
from gotr1_core.policies.chat_template import fill_template
from gotr1_core.policies.tokenization import PROMPT_MARK, TAGS


class JanusText(tokenization.ChatText):
    """Janus's tokenizer and its chat template, with the instruction filled in. ``instruction`` has ``{prompt}`` where the prompt goes."""

    def __init__(self, tokenizer: Any, instruction: str) -> None:
        message = [{"role": "user", "content": [{"type": "text", "text": instruction.format(prompt=PROMPT_MARK)}]}]
        super().__init__(tokenizer, fill_template(tokenizer, message, add_generation_prompt=True), tags=TAGS)
