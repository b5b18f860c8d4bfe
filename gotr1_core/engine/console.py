"""Prints for people. Names, prompts and messages of others may hold control characters: a terminal shows them and does not obey them."""

from __future__ import annotations

import builtins
import re
import sys
from typing import IO, Any

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""All control characters but the tab and the newline, and what separates lines or reverses text."""


class Formatted(str):
    """A text that is printed as it is: what came from others in it is escaped already, and its colours are ours."""

    __slots__ = ()


def printable(text: str) -> str:
    """Returns a text with its control characters as escapes such as ``\\u001b``, which mean the same in JSON. Tab and newline stay."""
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print(*values: Any, sep: str = " ", end: str = "\n", file: IO[str] | None = None, flush: bool = False) -> None:
    """Prints as Python's ``print`` does, with control characters escaped on stderr and on a terminal.

    What goes into a file or a pipe is unchanged, and so is :class:`Formatted`. Every module of gotr1 that prints imports this.
    """
    stream = sys.stdout if file is None else file
    if stream is sys.stderr or (stream is sys.stdout and stream.isatty()):
        values = tuple(value if isinstance(value, Formatted) else printable(str(value)) for value in values)
    builtins.print(*values, sep=sep, end=end, file=file, flush=flush)
