"""Qwen's conversation and tags as token ids. A user's text never becomes special tokens, see :mod:`gotr1_core.policies.tokenization`."""

from __future__ import annotations

from typing import Any

from gotr1_core.chain import OBJ_END, OBJ_START
from gotr1_core.errors import UsageError
from gotr1_core.policies.chat_template import fill_template
from gotr1_core.policies.tokenization import PROMPT_MARK, TAGS, ChatText
from gotr1_qwen.instruction import FIELD

QWEN_TAGS = {OBJ_START: "<|object_ref_start|>", OBJ_END: "<|object_ref_end|>"}
"""Qwen's names for a chain's tags, where they differ. Its ``<|box_start|>`` and ``<|box_end|>`` are named as in a chain."""
_TEMPLATE = "give the checkpoint's own chat template"


class Conversation(ChatText):
    """The chat template of a checkpoint, with an instruction filled in.

    With ``tags="tokens"`` each of a chain's tags is one token, in chains and in the instruction's examples. It is the tokenizer's token of
    that name if there is one, else Qwen's own. With ``tags="text"`` tags are spelled out. Decoding reads both, whatever a model writes.

    Raises:
        UsageError: the tokenizer lacks a tag, or the template cannot be filled in, makes the model think first, or has no end of turn.
    """

    def __init__(self, tokenizer: Any, instruction: str, tags: str) -> None:
        vocabulary = tokenizer.get_vocab()
        self.tag_tokens = {tag: tag if tag in vocabulary else QWEN_TAGS.get(tag, tag) for tag in TAGS} if tags == "tokens" else {}
        for token in self.tag_tokens.values():
            if token not in vocabulary:
                raise UsageError(f"tags=tokens: the tokenizer has no {token}", hint="spell tags out: tags=text")
        user = {"role": "user", "content": self._with_tag_tokens(instruction).replace(FIELD, PROMPT_MARK)}
        written = _fill_template(tokenizer, [user], add_generation_prompt=True)
        super().__init__(tokenizer, written, tags=self.tag_tokens.values(), letters=() if self.tag_tokens else {*TAGS, *QWEN_TAGS.values()})
        if self.after.rfind("<think>") > self.after.rfind("</think>"):
            raise UsageError("the chat template makes the model think before it answers", hint="give a checkpoint that answers directly")
        self.stop = _end_of_turn(tokenizer)

    def encode_chain(self, raw: str) -> list[int]:
        """Token ids of a chain, without the end of the turn."""
        return super().encode_chain(self._with_tag_tokens(raw))

    def decode(self, ids: Any) -> str:
        """The text that token ids spell. Qwen's names for tags become those of a chain."""
        text = super().decode(ids)
        for tag, token in QWEN_TAGS.items():
            text = text.replace(token, tag)
        return text

    def _with_tag_tokens(self, text: str) -> str:
        """A text whose tags have the tokenizer's names."""
        for tag, token in self.tag_tokens.items():
            text = text.replace(tag, token)
        return text


def _fill_template(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation as text. Thinking is off, an option of Qwen3's template that the others ignore."""
    return fill_template(tokenizer, messages, add_generation_prompt=add_generation_prompt, enable_thinking=False)


def _end_of_turn(tokenizer: Any) -> int:
    """The id of the token with which the template ends an answer."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROMPT_MARK}]
    _, _, after = _fill_template(tokenizer, messages, add_generation_prompt=False).partition(PROMPT_MARK)
    ids = tokenizer(after, add_special_tokens=False).input_ids
    if not ids or ids[0] not in tokenizer.added_tokens_decoder:
        raise UsageError("the chat template does not end an answer with a special token", hint=_TEMPLATE)
    return int(ids[0])
