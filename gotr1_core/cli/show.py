"""``gotr1 show``"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import Json, kind_of, kinds, names, registry

if TYPE_CHECKING:
    from gotr1_core.hookspecs import Component
    from gotr1_core.plugins import Provided


def _names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return names(kind_of(ctx.params["kind"]))(incomplete)


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Such as planner or judge.", autocompletion=kinds)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `gotr1 list` shows it.", autocompletion=_names)],
    as_json: Json = False,
) -> None:
    """Shows a component and its options. Of a preset, the config that it is."""
    import json

    found = registry().find(kind_of(kind), name)
    if as_json:
        print(json.dumps(_facts(found), ensure_ascii=False))
    elif found.component.kind == "preset":
        path = registry().preset(name)
        print(f"# {_title(found)}\n{path.read_text(encoding='utf-8').replace('${HERE}', str(path.parent.resolve()))}", end="")
    else:
        _print(found)


def _title(found: Provided) -> str:
    return f"{found.component.kind} {found.component.name} ({found.distribution} {found.version})"


def _print(found: Provided) -> None:
    from gotr1_core.cli.options import COLUMNS, option_rows, schema_of
    from gotr1_core.cli.tables import table

    component = found.component
    rows = option_rows(schema_of(component) or {}, f"{component.kind}.")
    rewards = _rewards(component)
    print(_title(found))
    print(f"  {component.summary or 'no summary'}\n  {component.target}")
    if component.kind == "judge":
        for stage in sorted(set((rewards or {}).values()), reverse=True):
            print(f"  scores of the {stage}: {', '.join(reward for reward, sees in (rewards or {}).items() if sees == stage)}")
        if not rewards:
            print("  scores what its options say")
    print()
    print(table(COLUMNS, rows) if rows else "no options\n", end="")


def _facts(found: Provided) -> dict[str, Any]:
    from gotr1_core.cli.options import schema_of
    from gotr1_core.config.merge import read_yaml

    component = found.component
    facts: dict[str, Any] = {
        "kind": component.kind,
        "name": component.name,
        "distribution": found.distribution,
        "version": found.version,
        "summary": component.summary,
        "target": component.target,
        "options": schema_of(component),
    }
    if component.kind == "judge":
        facts["rewards"] = _rewards(component)
    if component.kind == "preset":
        facts["config"] = read_yaml(registry().preset(f"{found.distribution}:{component.name}"))
    return facts


def _rewards(component: Component) -> dict[str, str] | None:
    """What a judge's class says that it scores; None where only an object knows."""
    from gotr1_core.plugins import load

    offered = getattr(load(component.target), "rewards", None) if component.kind == "judge" else None
    return dict(offered) if isinstance(offered, Mapping) else None
