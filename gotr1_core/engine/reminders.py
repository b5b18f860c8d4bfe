"""Says on stderr what a process is busy with or waits for, so that nothing takes long without a word."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gotr1_core.engine.console import print


@contextmanager
def remind(message: Callable[[], str], *, every: float) -> Iterator[None]:
    """Prints ``message()`` and the seconds so far on stderr, each time ``every`` seconds have passed inside the block. It ends nothing.

    Another thread prints. So code that computes in Python, sleeps or waits does not stop it.
    """
    over, begun = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(every):
            print(f"{message()}, {time.monotonic() - begun:.0f} s so far", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, name="reminder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1)  # a message that is being printed ends first; a stderr that nobody reads must not hold up the block
