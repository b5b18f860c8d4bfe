"""Ctrl-C during training: after the first the step finishes and is saved, the second stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from gotr1_core.engine.console import print
from gotr1_core.errors import Gotr1Error


class Interrupted(Gotr1Error):
    """The user stopped a run, and the run was saved. Exit status 130."""

    code = 130


class Paused(Gotr1Error):
    """A component cannot go on now, and nothing is wrong with the run: a budget is spent, or a server is down.

    A run that trains saves its state from before the step, so a resume repeats the step as if nothing had happened.
    """


class StopRequest:
    """Inside its ``with`` block, SIGINT and SIGTERM set ``requested``; a later SIGINT raises KeyboardInterrupt.

    SIGTERM never interrupts. Schedulers send it before they kill, to every process and more than once; torchrun sends it after a Ctrl-C.
    Only the main process (``is_main``) prints what it will do.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, is_main: bool = True) -> None:
        self.requested = False
        self.is_main = is_main
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # in other threads Python cannot set signal handlers
            self._before = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = not self.requested, True
        # torchrun also sends SIGTERM when another process has ended; then no step will finish, and the message would be wrong.
        if first and self.is_main and not (number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ):
            print(f"{signal.Signals(number).name}: finishing this step and saving it; Ctrl-C stops at once", file=sys.stderr)


@contextmanager
def ignore_sigterm() -> Iterator[None]:
    """Inside, SIGTERM is ignored, so that a failed run can write its error. torchrun sends it as soon as another process has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
