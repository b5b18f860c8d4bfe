"""Registers what gotr1-janus provides: one policy as planner and renderer, its presets, and the command ``gotr1 import``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gotr1_core.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    import typer

TARGET, OPTIONS = "gotr1_janus.policy:JanusPolicy", "gotr1_janus.options:JanusOptions"


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("planner", "janus", TARGET, OPTIONS, "Janus-Pro and GoT-R1 write the chain")
    yield Component("renderer", "janus", TARGET, OPTIONS, "Janus-Pro and GoT-R1 draw it, in the same sequence")
    yield Component("preset", "got-r1", "gotr1_janus:presets/got-r1.yaml", None, "draws as the released GoT-R1 does")
    for size in ("1b", "7b"):
        yield Component(
            "preset", f"got-r1-{size}", f"gotr1_janus:presets/got-r1-{size}.yaml", None, f"trains Janus-Pro-{size.upper()} as GoT-R1"
        )


@hookimpl
def gotr1_commands(app: typer.Typer) -> None:
    from gotr1_janus.commands import command

    app.command("import")(command)
