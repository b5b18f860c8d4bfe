"""Rich's console and progress bars, with the texts of others escaped. It imports rich, so commands import it when they need it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from gotr1_core.engine.console import printable


class EscapingConsole(Console):
    """A console that shows every text as it is: no markup, no control characters."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Renders a text, of a cell or a title too, with its control characters escaped."""
        return super().render_str(printable(text), **settings)


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(printable(task.description))


class _TimeLeft(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        if "ends" not in task.fields:
            return super().render(task)
        ends: float | None = task.fields["ends"]
        left = "-:--:--" if ends is None else timedelta(seconds=max(0, round(ends - task.get_time())))
        return Text(f"{left} left", style="progress.remaining")


def progress_bars(console: Console) -> Progress:
    """Returns progress bars: description, bar, what is done, time taken and time left: until a task's field ``ends``, if it has one."""
    columns = (_Description(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _TimeLeft())
    return Progress(*columns, console=console)
