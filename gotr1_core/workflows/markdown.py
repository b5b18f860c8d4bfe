"""Texts of others in Markdown: they are shown as they are, and never become markup, links or HTML."""

from __future__ import annotations

import re

from gotr1_core.engine.console import printable

_MARKUP = re.compile(r"(^[-+=]|[\\`*\[\]<>|~&#!$]|(?<![^\W_])_|_(?![^\W_]))")  # an underscore inside of a word is none


def plain(text: str) -> str:
    """Returns a text as Markdown that shows it, in one line."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.splitlines())))


def code(text: str) -> str:
    """Returns a text as inline code, in one line."""
    line = printable(" ".join(text.splitlines())) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{space}{line}{space}{fence}"


def code_block(language: str, lines: list[str]) -> list[str]:
    """Returns lines of code as a fenced block. The fence is longer than any in the code."""
    text = printable("\n".join(lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", text, fence]
