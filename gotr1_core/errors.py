"""Errors with a message for the user. The command line prints them as `error:` and `hint:`."""

from __future__ import annotations


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


def first_line(error: BaseException) -> str:
    """The first line of a library error's message; the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
