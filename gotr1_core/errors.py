"""Errors with a message for the user. The command line prints them as `error:` and `hint:`."""

from __future__ import annotations

import difflib
import inspect
import traceback
from collections.abc import Iterable
from types import FrameType
from typing import Any


class Gotr1Error(Exception):
    """A failure with a message for the user. `str(error)` is the message.

    Attributes:
        message: what went wrong, one sentence or a few.
        hint: what to do about it, or None.
        code: the exit status of the command line: 1 for a failure, 2 for wrong usage.
    """

    code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Only the message goes to Exception.__init__, so that str(error) is the message.
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps the hint when an error crosses processes (pickle would drop keyword-only arguments)."""
        return type(self), (self.message,), {"hint": self.hint}


class UsageError(Gotr1Error):
    """The user asked for something that cannot be: a wrong option, a malformed expression. Exit status 2."""

    code = 2


NOT_FINITE_HINT = (
    "float16 overflows: use bfloat16 or float32 for dtype, and bf16 for mixed_precision; "
    "otherwise look for NaN in the weights, or lower optimizer.learning_rate"
)
"""What to do about logits, latents, pixels or losses that are NaN or infinite."""


def first_line(error: BaseException) -> str:
    """The first line of a library error's message; the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """An error in one line: its type and message, or only the message of one of ours."""
    text = error.message if isinstance(error, Gotr1Error) else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).removesuffix(":")


def nearest(name: str, known: Iterable[str]) -> str:
    """The beginning of a hint that names the closest known name; empty if none is close."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}? " if near else ""


def place_of(function: object, error: BaseException | None = None) -> str:
    """``FILE:LINE`` of a function or class; with ``error`` the line in its package that was under way. Empty if it is not known.

    The package of a method that a class inherits from a library is also that of the class.
    """
    owner = getattr(function, "__self__", None)
    function = inspect.unwrap(function) if callable(function) else type(function)
    makers = (function, owner if isinstance(owner, type) else type(owner))
    packages = {str(getattr(maker, "__module__", "")).partition(".")[0] for maker in makers} - {"builtins"}
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code.co_filename, line) for frame, line in _walk(error)]
    lines = [f"{file}:{line}" for module, file, line in frames if str(module).partition(".")[0] in packages]
    code: Any = getattr(function, "__code__", None)
    if lines or code is not None:
        return lines[-1] if lines else f"{code.co_filename}:{code.co_firstlineno}"
    try:
        made = function if isinstance(function, type) else type(function)
        return f"{inspect.getsourcefile(made)}:{inspect.getsourcelines(made)[1]}"
    except (OSError, TypeError):  # made by C, or in a file that is gone
        return ""


def _walk(error: BaseException | None) -> Iterable[tuple[FrameType, int]]:
    return traceback.walk_tb(error.__traceback__ if error else None)
