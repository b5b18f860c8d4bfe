"""Registers what gotr1-testing provides: the command ``gotr1 check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gotr1_core.hookspecs import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def gotr1_commands(app: typer.Typer) -> None:
    from gotr1_testing.command import command

    app.command("check")(command)
