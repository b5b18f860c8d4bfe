"""Rows for people: a table on a terminal, aligned columns with whole lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """The text to print. No cell is cut: a terminal's table wraps them, and elsewhere a row is a line however long."""
    if sys.stdout.isatty():
        return _rich(columns, rows, title)
    lines = [[" ".join(cell.split()) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*([title] if title else []), *shown]) + "\n"


def _rich(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)  # what plugins say is text, with whatever brackets
    shown = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()
