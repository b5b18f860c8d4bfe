"""Shows the progress of a command: a bar on stderr if stderr is a terminal, else nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar labelled ``what``. Gives the function to call with how much of ``total`` is done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from gotr1_core.cli.terminal import EscapingConsole, progress_bars

    with progress_bars(EscapingConsole(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
