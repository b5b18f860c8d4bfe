"""Ctrl-C: the first one lets the step finish and be saved, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from gotr1_core.errors import Gotr1Error


class Interrupted(Gotr1Error):
    """The user stopped a run, and it was saved. Exit status 130."""

    code = 130


class Stop:
    """While it is entered, SIGINT and SIGTERM set ``asked``; a SIGINT after that interrupts.

    A SIGTERM never interrupts: schedulers send it before they kill, to every process and more than once, and torchrun after a Ctrl-C.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, main: bool = True) -> None:
        self.asked = False
        self.main = main
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no say over signals
            self._before = {number: signal.signal(number, self._hear) for number in self.signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.asked = not self.asked, True
        # torchrun also sends SIGTERM where another process has ended, and then no step is finished.
        if first and self.main and not (number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ):
            print(f"{signal.Signals(number).name}: finishing this step and saving it; Ctrl-C leaves at once", file=sys.stderr)


@contextmanager
def ending() -> Iterator[None]:
    """While a run's last words are written SIGTERM is not heard: torchrun sends it as soon as another process has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
