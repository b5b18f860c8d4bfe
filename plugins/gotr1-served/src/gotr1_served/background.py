"""One event loop in one thread, for all requests of a process.

Connections of an asynchronous client belong to the loop that made them. So there is one loop, and it runs until the process ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def background_loop() -> asyncio.AbstractEventLoop:
    """Returns the loop of this process. The first call starts it."""
    with _lock:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="gotr1-served", daemon=True).start()
            _loops.append(loop)
        return _loops[0]


def run_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in the loop, waits for it and returns its result. If the wait is interrupted, the coroutine is cancelled."""
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
