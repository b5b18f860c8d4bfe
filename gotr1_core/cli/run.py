"""A training run at the terminal: live view, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from gotr1_core.cli.view import View
from gotr1_core.evaluation import REWARD, estimate, paired
from gotr1_core.report import REPORT
from gotr1_core.restore import checkpoint_of
from gotr1_core.run import Run


def watched(train: Callable[[View], Run], steps: int, *, live: bool) -> None:
    """Runs a training under the live view; prints what it came to, and on stdout where it lies."""
    console = Console(stderr=True)
    with View(console, steps, live=live) as view:
        run = train(view)
    if run.main:
        if live:
            show_result(console, run)
        print(run.folder)


def show_result(console: Console, run: Run) -> None:
    """Held-out scores before and after, with intervals, and where everything lies."""
    rows = run.records.held_out
    names = [REWARD, *(n for n in rows["before"] if n != REWARD)]
    table = Table("held-out", *names, title=f"{len(rows['before'][REWARD])} held-out prompts")
    for name, row in rows.items():
        table.add_row(name, *[f"{estimate(row[n]).mean:.3f}" for n in names])
    change = {n: paired(rows["before"][n], rows["after"][n]) for n in names}
    table.add_section()
    table.add_row("change", *[f"{change[n].mean:+.3f} ± {change[n].half_width:.3f}" for n in names])
    console.print(table)
    _, best = checkpoint_of(run.folder)
    where = {"run": run.folder, "look": run.folder / REPORT, "best": best, "pictures": run.folder / "samples"}
    draw = f'gotr1 generate "a red circle above a blue square" --checkpoint {run.folder}'
    for name, what in {**where, "draw": draw}.items():
        console.print(f"{name:<12}{what}", soft_wrap=True, highlight=False, markup=False)
