"""``gotr1 plugins``: prints the installed plugins, what each provides, and why one fails to load. gotr1-testing adds ``plugins new``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from gotr1_core.cli.common import Json, registry
from gotr1_core.engine.console import print

if TYPE_CHECKING:
    from gotr1_core.plugins import Plugin, Registry


app = typer.Typer(help="Lists the plugins. With gotr1-testing, `new` begins one.")


@app.callback(invoke_without_command=True)
def command(ctx: typer.Context, as_json: Json = False) -> None:
    """Lists the plugins and what each provides; plugins that fail with their error. gotr1-testing adds `new`."""
    from gotr1_core.cli.tables import format_table

    if ctx.invoked_subcommand is not None:
        return
    plugins = registry()
    if as_json:
        print(json.dumps(_facts(plugins), ensure_ascii=False))
        return
    rows = [(p.distribution, p.version, _provides(plugins, p)) for p in plugins.loaded]
    print(format_table(("plugin", "version", "provides"), rows), end="")
    if plugins.broken:
        print()
        print(format_table(("failed", "error"), [(_name(b.distribution, b.name), b.error) for b in plugins.broken]), end="")


def _name(distribution: str, name: str) -> str:
    """Names a distribution. Adds the name of the plugin if the distribution's name does not contain it."""
    return distribution if name in distribution else f"{distribution} ({name})"


def _provides(registry: Registry, plugin: Plugin) -> str:
    words = [f"{c.kind} {c.name}" for c in plugin.components]
    words += [f"command {name}" for name, owner in registry.commands.items() if owner == plugin.id]
    words += [f"hook {hook}" for hook in plugin.hooks if hook not in ("gotr1_components", "gotr1_commands")]
    return ", ".join(words) or "nothing"


def _facts(registry: Registry) -> dict[str, Any]:
    return {
        "plugins": [
            {
                "name": p.name,
                "distribution": p.distribution,
                "version": p.version,
                "components": [{"kind": c.kind, "name": c.name} for c in p.components],
                "commands": [name for name, owner in registry.commands.items() if owner == p.id],
                "hooks": list(p.hooks),
            }
            for p in registry.loaded
        ],
        "components": [
            {
                "kind": p.component.kind,
                "name": p.component.name,
                "plugin": f"{p.distribution} {p.version}".strip(),
                "summary": p.component.summary,
            }
            for p in registry.provided
        ],
        "failed": [{"name": b.name, "plugin": b.distribution, "error": b.error} for b in registry.broken],
    }
