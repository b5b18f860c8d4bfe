"""Ctrl-C: the first one lets the step finish and be saved, the second leaves at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from gotr1_core.errors import Gotr1Error


class Interrupted(Gotr1Error):
    """The user stopped a run, and it was saved. Exit status 130."""

    code = 130


class Stop:
    """While it is entered, SIGINT and SIGTERM (which schedulers send before they kill) set ``asked``; a second one interrupts."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
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
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(f"{signal.Signals(number).name}: finishing this step and saving it; once more leaves at once", file=sys.stderr)
