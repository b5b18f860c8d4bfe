"""Formats rows for people: a table on a terminal; elsewhere aligned columns, one line for each row."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gotr1_core.engine.console import Formatted


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Formatted | str:
    """Returns a table as text. No cell is cut: a terminal's table wraps long cells, and elsewhere a line may be long."""
    if sys.stdout.isatty():
        return _rich(columns, rows, title)
    lines = [[" ".join(cell.split()) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text_lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*([title] if title else []), *text_lines]) + "\n"


def _rich(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Formatted:
    from rich import box
    from rich.table import Table

    from gotr1_core.cli.terminal import EscapingConsole

    console = EscapingConsole()
    rich_table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        rich_table.add_column(name, overflow="fold")
    for row in rows:
        rich_table.add_row(*row)
    with console.capture() as captured:
        console.print(rich_table)
    return Formatted(captured.get())
