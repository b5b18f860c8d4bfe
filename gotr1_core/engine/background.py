"""Makes calls in another thread, one after another, while this one works on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

Submit = Callable[[Callable[[], Any]], "Future[Any]"]
"""Has a call made in another thread."""


@contextmanager
def background(name: str) -> Iterator[Submit]:
    """Gives a function that has a call made in a thread of its own, after the calls before it, and returns its future.

    After the block no further call begins. One that is under way is not waited for: it ends with the process at the latest.
    """
    calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
    over = threading.Event()

    def work() -> None:
        while (item := calls.get()) is not None and not over.is_set():
            call, future = item
            try:
                future.set_result(call())
            except BaseException as error:  # it is raised where the result is asked for
                future.set_exception(error)

    def submit(call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        calls.put((call, future))
        return future

    threading.Thread(target=work, name=name, daemon=True).start()
    try:
        yield submit
    finally:
        over.set()
        calls.put(None)
