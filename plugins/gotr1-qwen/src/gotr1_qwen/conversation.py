"""Qwen's conversation and its tags. What somebody wrote stays text, see :mod:`gotr1_core.policies.tokenization`."""

from __future__ import annotations

from typing import Any

from gotr1_core.chain import OBJ_END, OBJ_START
from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.tokenization import MARK, TAGS, Text
from gotr1_qwen.instruction import FIELD

OWN = {OBJ_START: "<|object_ref_start|>", OBJ_END: "<|object_ref_end|>"}
"""What Qwen calls a chain's tags where it calls them otherwise; it has ``<|box_start|>`` and ``<|box_end|>`` under these names."""
_TEMPLATE = "give the checkpoint's own chat template"


class Conversation(Text):
    """The chat template of a checkpoint, filled in with an instruction.

    With ``tags="tokens"`` each of a chain's tags is one token, in the instruction's examples as in a chain: the tokenizer's token of that
    name, else Qwen's own. With ``tags="text"`` they are spelled out. Decoded are both, whichever a model writes.
    """

    def __init__(self, tokenizer: Any, instruction: str, tags: str) -> None:
        known = tokenizer.get_vocab()
        self.own = {tag: tag if tag in known else OWN.get(tag, tag) for tag in TAGS} if tags == "tokens" else {}
        for word in self.own.values():
            if word not in known:
                raise UsageError(f"tags=tokens: the tokenizer has no {word}", hint="spell them out: tags=text")
        user = {"role": "user", "content": self._renamed(instruction).replace(FIELD, MARK)}
        written = _said(tokenizer, [user], add_generation_prompt=True)
        super().__init__(tokenizer, written, tags=self.own.values(), letters=() if self.own else {*TAGS, *OWN.values()})
        if self.after.rfind("<think>") > self.after.rfind("</think>"):
            raise UsageError("the chat template has the model think before it answers", hint="give a checkpoint that answers at once")
        self.stop = _end_of_turn(tokenizer)

    def encode_chain(self, raw: str) -> list[int]:
        """Ids of a chain, without the end of the turn."""
        return super().encode_chain(self._renamed(raw))

    def decode(self, ids: Any) -> str:
        """The text that ids spell, with a chain's tags under their own names."""
        text = super().decode(ids)
        for tag, word in OWN.items():
            text = text.replace(word, tag)
        return text

    def _renamed(self, text: str) -> str:
        """A text with the tags as the tokenizer calls them."""
        for tag, word in self.own.items():
            text = text.replace(tag, word)
        return text


def _said(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation in the template's words, thinking off (Qwen3's; the other templates do not look at it)."""
    try:
        said: str = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False, enable_thinking=False
        )
    except Exception as error:  # Jinja's errors, and whatever a template raises
        first = first_line(error)
        raise UsageError(f"the chat template cannot be filled in: {first}", hint=_TEMPLATE) from error
    return said


def _end_of_turn(tokenizer: Any) -> int:
    """The token with which the template ends an answer."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    _, _, after = _said(tokenizer, messages, add_generation_prompt=False).partition(MARK)
    ids = tokenizer(after, add_special_tokens=False).input_ids
    if not ids or ids[0] not in tokenizer.added_tokens_decoder:
        raise UsageError("the chat template ends an answer with no token of its own", hint=_TEMPLATE)
    return int(ids[0])
