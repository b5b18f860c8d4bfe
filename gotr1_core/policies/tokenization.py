"""Encodes prompts and chains as token ids. What users write stays text: it never becomes a special token."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import chain as joined, pairwise
from typing import Any

from gotr1_core.chain import BOX_END, BOX_START, OBJ_END, OBJ_START, Chain, parse
from gotr1_core.errors import UsageError

TAGS = (BOX_START, BOX_END, OBJ_START, OBJ_END)
PROMPT_MARK = "\ue000"
"""Stands for the prompt while a chat template is filled in. It is a private-use character, so no text contains it by accident."""
_MARKUP = re.compile(r"<\S+>")


class ChatText:
    """Encodes prompts within a chat template, and chains, with special tokens only where the model expects them.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: the conversation up to where the model begins to write, with `PROMPT_MARK` in place of the prompt. What looks like a
            special token in it is one, except for ``letters``.
        tags: the words that are special tokens in a chain.
        letters: special tokens of the tokenizer that are spelled out as ordinary text everywhere.
    """

    def __init__(self, tokenizer: Any, template: str, *, tags: Collection[str] = TAGS, letters: Collection[str] = ()) -> None:
        self.tokenizer, self.tags = tokenizer, frozenset(tags)
        self.before, mark, self.after = template.partition(PROMPT_MARK)
        if not mark or PROMPT_MARK in self.after:
            raise UsageError("the chat template must insert the user's text exactly once, unchanged", hint="use the checkpoint's template")
        self._prefix = _prefix_ids(tokenizer, template)
        # Some checkpoints add their tags as ordinary tokens; what looks like a tag counts as special. Other such tokens are text.
        added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special or _MARKUP.fullmatch(str(token))}
        self._special_names = added
        words = set(added.values())
        self._any_special, self._not_tags, self._letters = _pattern(words), _pattern(words - self.tags), _pattern(words & set(letters))
        self._longest = max(len(word.encode()) for word in tokenizer.get_vocab() if word in self.tags or word not in words)
        # A text without these characters, which the tokenizer does not rewrite, has no special token in it.
        marks = [{character for character in word if not character.isalnum()} for word in words]
        self._marks = frozenset().union(*marks) if all(marks) else None
        self._template_special = self._special([*self._prefix, *self._ids(self._conversation("a"))])

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the ids of the conversation up to where the model begins to write. No part of ``text`` becomes a special token.

        Raises:
            UsageError: the prompt is blank or not valid text.
        """
        if not text.strip():
            raise UsageError("a prompt is empty", hint="describe what the picture should show")
        _refuse_broken(text)
        return self._checked(self._prefix + self._ids(self._conversation(text)), self._template_special, text)

    def encode_chain(self, raw: str) -> list[int]:
        """Returns the ids of a chain, without the token that ends it. Its tags are the only special tokens."""
        _refuse_broken(raw)
        ids = self._ids(_cut(raw, self._not_tags, 0, len(raw)))
        return self._checked(ids, [i for i in self._special(ids) if self._special_names[i] in self.tags], raw)

    def decode(self, ids: Any) -> str:
        """Returns the text of ids. Special tokens are kept, else the boxes would be lost."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode_chain(self, ids: Any) -> Chain:
        """Returns the chain of ids."""
        return parse(self.decode(ids))

    def _conversation(self, text: str) -> list[str]:
        """Puts a prompt into the conversation, and cuts it so that nothing of the prompt becomes a special token."""
        begin = len(self.before)
        pieces = _cut(f"{self.before}{text}{self.after}", self._any_special, begin, begin + len(text))
        return [part for piece in pieces for part in _cut(piece, self._letters, 0, len(piece))]

    def min_tokens(self, text: str) -> int:
        """Returns a lower bound of a text's number of tokens, from its length alone."""
        return -(-len(text.encode(errors="replace")) // self._longest)

    def max_prompt_tokens(self, text: str) -> int | None:
        """Returns an upper bound of the number of ids of a prompt, from its length alone; None if only :meth:`encode_prompt` can say.

        A token has at least one byte of the text. Most prompts are far shorter than a context, so this saves their tokenization.
        """
        if self._marks is None or not text.isascii() or not text.strip() or not self._marks.isdisjoint(text):
            return None
        template = len(self._prefix) + len(f"{self.before}{self.after}".encode())
        return template + len(text) + 1  # some tokenizers begin with a space of their own

    def _ids(self, pieces: list[str]) -> list[int]:
        unique = list(dict.fromkeys(pieces))
        ids = dict(zip(unique, self.tokenizer(unique, add_special_tokens=False, verbose=False).input_ids, strict=True))
        return list(joined.from_iterable(ids[piece] for piece in pieces))

    def _special(self, ids: list[int]) -> list[int]:
        return [i for i in ids if i in self._special_names]

    def _checked(self, ids: list[int], expected: list[int], text: str) -> list[int]:
        """Refuses other special tokens than expected: a tokenizer that rewrites text first may find some that :func:`_cut` had cut."""
        if self._special(ids) != expected:
            raise UsageError(f"the tokenizer makes special tokens of {shorten(text)}", hint="remove what looks like <a tag>")
        return ids


def shorten(text: str, length: int = 40) -> str:
    """Returns the first ``length`` characters of a text, quoted, for a message."""
    return repr(text if len(text) <= length else text[:length] + "…")


def _prefix_ids(tokenizer: Any, template: str) -> list[int]:
    """The ids that the tokenizer puts before every text, unless the template begins with them. Janus-Pro's template relies on these."""
    if tokenizer.bos_token and template.startswith(tokenizer.bos_token):
        return []
    alone, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    return list(full[: next(i for i in range(len(full)) if full[i : i + len(alone)] == alone)])


def _refuse_broken(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates: Python's stand-in for bytes of a command line or a JSON string that are not text
        raise UsageError(f"{shorten(text)} is not valid text", hint="write it in UTF-8") from None


def _pattern(words: Collection[str]) -> re.Pattern[str]:
    """Compiles a pattern that finds ``words`` wherever they begin, also inside each other."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))" if longest_first else r"(?!)")


def _cut(text: str, words: re.Pattern[str], begin: int, end: int) -> list[str]:
    """Cuts a text into pieces: each of ``words`` that overlaps ``begin`` to ``end`` is cut after its first letter."""
    cuts = [m.start() + 1 for m in words.finditer(text) if m.start() < end and m.end(1) > begin]
    return [text[i:j] for i, j in pairwise([0, *cuts, len(text)])]
