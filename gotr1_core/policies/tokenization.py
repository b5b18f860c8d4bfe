"""Prompts and chains as token ids. What somebody wrote stays text: it never becomes a token that means something to the model."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import chain as joined
from itertools import pairwise
from typing import Any

from gotr1_core.chain import BOX_END, BOX_START, OBJ_END, OBJ_START, Chain, parse
from gotr1_core.errors import UsageError

TAGS = (BOX_START, BOX_END, OBJ_START, OBJ_END)
MARK = "\ue000"
"""Stands for the prompt while a chat template is filled in: a character for private use, so nobody's."""
_MARKUP = re.compile(r"<\S+>")


class Text:
    """A tokenizer, a conversation, and the words that are tokens only where the model means them.

    Args:
        tokenizer: a fast one of transformers.
        written: the conversation up to where the model begins to write, `MARK` in place of the prompt. What looks like a token in it is
            one, but for ``letters``.
        tags: the words that are tokens in a chain.
        letters: words of the tokenizer that are letters wherever they stand.
    """

    def __init__(self, tokenizer: Any, written: str, *, tags: Collection[str] = TAGS, letters: Collection[str] = ()) -> None:
        self.tokenizer, self.tags = tokenizer, frozenset(tags)
        self.before, mark, self.after = written.partition(MARK)
        if not mark or MARK in self.after:
            raise UsageError("the chat template does not say a user's text once, as it is", hint="give the checkpoint's own template")
        self._lead = _lead(tokenizer, written)
        # Some checkpoints add their tags as ordinary tokens; what looks like a tag is one. Other such tokens are letters.
        added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special or _MARKUP.fullmatch(str(token))}
        self._names = added
        words = set(added.values())
        self._any, self._other, self._letters = _pattern(words), _pattern(words - self.tags), _pattern(words & set(letters))
        self._longest = max(len(word.encode()) for word in tokenizer.get_vocab() if word in self.tags or word not in words)
        self._own = self._special([*self._lead, *self._ids(self._conversation("a"))])

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of the conversation up to where the model begins to write. Only the template and the instruction have special tokens.

        Raises:
            UsageError: the prompt is blank, or no text.
        """
        if not text.strip():
            raise UsageError("a prompt is empty", hint="say what the picture shall show")
        _refuse_broken(text)
        return self._checked(self._lead + self._ids(self._conversation(text)), self._own, text)

    def encode_chain(self, raw: str) -> list[int]:
        """Ids of a chain, without what ends it. Its tags are the only special tokens."""
        _refuse_broken(raw)
        ids = self._ids(_cut(raw, self._other, 0, len(raw)))
        return self._checked(ids, [i for i in self._special(ids) if self._names[i] in self.tags], raw)

    def decode(self, ids: Any) -> str:
        """The text that ids spell; special tokens are kept, or the boxes would be lost."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode_chain(self, ids: Any) -> Chain:
        """The chain that ids spell."""
        return parse(self.decode(ids))

    def _conversation(self, text: str) -> list[str]:
        """The conversation with a prompt in it, cut so that nothing of the prompt is a token that means something."""
        begin = len(self.before)
        pieces = _cut(f"{self.before}{text}{self.after}", self._any, begin, begin + len(text))
        return [part for piece in pieces for part in _cut(piece, self._letters, 0, len(piece))]

    def at_least(self, text: str) -> int:
        """A bound: no text of this length has fewer tokens."""
        return -(-len(text.encode(errors="replace")) // self._longest)

    def _ids(self, pieces: list[str]) -> list[int]:
        different = list(dict.fromkeys(pieces))
        ids = dict(zip(different, self.tokenizer(different, add_special_tokens=False, verbose=False).input_ids, strict=True))
        return list(joined.from_iterable(ids[piece] for piece in pieces))

    def _special(self, ids: list[int]) -> list[int]:
        return [i for i in ids if i in self._names]

    def _checked(self, ids: list[int], expected: list[int], text: str) -> list[int]:
        """A tokenizer that rewrites text before it looks for tokens would find what was cut."""
        if self._special(ids) != expected:
            raise UsageError(f"the tokenizer makes special tokens of {shown(text)}", hint="leave out what looks like <a tag>")
        return ids


def shown(text: str, length: int = 40) -> str:
    """A text's beginning, for a message."""
    return repr(text if len(text) <= length else text[:length] + "…")


def _lead(tokenizer: Any, written: str) -> list[int]:
    """What the tokenizer puts before every text, where the template does not say it: Janus-Pro's leaves the beginning to it."""
    if tokenizer.bos_token and written.startswith(tokenizer.bos_token):
        return []
    alone, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    return list(full[: next(i for i in range(len(full)) if full[i : i + len(alone)] == alone)])


def _refuse_broken(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python's stand-in for bytes of a command line or a JSON string that are no text
        raise UsageError(f"{shown(text)} is no valid text", hint="write it in UTF-8") from None


def _pattern(words: Collection[str]) -> re.Pattern[str]:
    """Finds some words wherever they begin, within each other too."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))" if longest_first else r"(?!)")


def _cut(text: str, words: re.Pattern[str], begin: int, end: int) -> list[str]:
    """The text in pieces: every word that reaches into it between ``begin`` and ``end`` is cut after its first letter."""
    cuts = [m.start() + 1 for m in words.finditer(text) if m.start() < end and m.end(1) > begin]
    return [text[i:j] for i, j in pairwise([0, *cuts, len(text)])]
