"""``gotr1 plugins``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gotr1_core.cli.common import Json, registry

if TYPE_CHECKING:
    from gotr1_core.plugins import Plugin, Registry


def command(as_json: Json = False) -> None:
    """Lists plugins and what each provides. Also those that fail, with their error."""
    import json

    from gotr1_core.cli.tables import table

    found = registry()
    if as_json:
        print(json.dumps(_facts(found), ensure_ascii=False))
        return
    print(table(("plugin", "version", "provides"), [(p.distribution, p.version, _provides(found, p)) for p in found.loaded]), end="")
    if found.broken:
        print("\n" + table(("failed", "error"), [(_name(b.distribution, b.name), b.error) for b in found.broken]), end="")


def _name(distribution: str, name: str) -> str:
    """A distribution, and which of its plugins where the names do not tell."""
    return distribution if name in distribution else f"{distribution} ({name})"


def _provides(found: Registry, plugin: Plugin) -> str:
    parts = [f"{c.kind} {c.name}" for c in plugin.components]
    parts += [f"command {name}" for name, owner in found.commands.items() if owner == plugin.id]
    parts += [f"hook {hook}" for hook in plugin.hooks if hook not in ("gotr1_components", "gotr1_commands")]
    return ", ".join(parts) or "nothing"


def _facts(found: Registry) -> dict[str, Any]:
    return {
        "plugins": [
            {
                "name": p.name,
                "distribution": p.distribution,
                "version": p.version,
                "components": [{"kind": c.kind, "name": c.name} for c in p.components],
                "commands": [name for name, owner in found.commands.items() if owner == p.id],
                "hooks": list(p.hooks),
            }
            for p in found.loaded
        ],
        "components": [
            {
                "kind": p.component.kind,
                "name": p.component.name,
                "plugin": f"{p.distribution} {p.version}".strip(),
                "summary": p.component.summary,
            }
            for p in found.provided
        ],
        "failed": [{"name": b.name, "plugin": b.distribution, "error": b.error} for b in found.broken],
    }
