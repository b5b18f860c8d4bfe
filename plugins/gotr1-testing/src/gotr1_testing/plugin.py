"""Registers what gotr1-testing provides: the commands ``gotr1 check`` and ``gotr1 plugins new``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gotr1_core.hookspecs import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def gotr1_commands(app: typer.Typer) -> None:
    import typer

    from gotr1_testing.command import command
    from gotr1_testing.new_plugin import new_command

    app.command("check")(command)
    plugins = typer.Typer()
    plugins.callback()(lambda: None)
    plugins.command("new")(new_command)
    app.add_typer(plugins, name="plugins")
