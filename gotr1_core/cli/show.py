"""``gotr1 show``: prints one component and its options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import Json, complete_kinds, complete_names, parse_kind, registry
from gotr1_core.engine.console import print

if TYPE_CHECKING:
    from gotr1_core.hookspecs import Component
    from gotr1_core.plugins import Provided


def _complete_name(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return complete_names(parse_kind(ctx.params["kind"]))(incomplete)


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Such as planner or judge.", autocompletion=complete_kinds)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `gotr1 list` shows.", autocompletion=_complete_name)],
    as_json: Json = False,
) -> None:
    """Shows a component and its options. Of a preset, it prints the config."""
    provided = registry().find(parse_kind(kind), name)
    if as_json:
        print(json.dumps(_facts(provided), ensure_ascii=False))
    elif provided.component.kind == "preset":
        path = registry().preset(name)
        print(f"# {_title(provided)}\n{path.read_text(encoding='utf-8').replace('${HERE}', str(path.parent.resolve()))}", end="")
    else:
        _print(provided)


def _title(provided: Provided) -> str:
    return f"{provided.component.kind} {provided.component.name} ({provided.distribution} {provided.version})"


def _print(provided: Provided) -> None:
    from gotr1_core.cli.options import COLUMNS, option_rows, schema_of
    from gotr1_core.cli.tables import format_table

    component = provided.component
    rows = option_rows(schema_of(component) or {}, f"{component.kind}.")
    rewards = _rewards(component)
    print(_title(provided))
    print(f"  {component.summary or 'no summary'}\n  {component.target}")
    if component.kind == "judge":
        for stage in sorted(set((rewards or {}).values()), reverse=True):
            scores = [score for score, its_stage in (rewards or {}).items() if its_stage == stage]
            print(f"  scores of the {stage}: {', '.join(scores)}")
        if not rewards:
            print("  its options decide what it scores")
    print()
    print(format_table(COLUMNS, rows) if rows else "no options\n", end="")


def _facts(provided: Provided) -> dict[str, Any]:
    from gotr1_core.cli.options import schema_of
    from gotr1_core.config.merge import read_yaml

    component = provided.component
    facts = {**provided.facts, "target": component.target, "options": schema_of(component)}
    if component.kind == "judge":
        facts["rewards"] = _rewards(component)
    if component.kind == "preset":
        facts["config"] = read_yaml(registry().preset(f"{provided.distribution}:{component.name}"))
    return facts


def _rewards(component: Component) -> dict[str, str] | None:
    """Returns the scores that a judge's class declares, with their stages; None if they depend on its options."""
    from gotr1_core.plugins import load

    offered = getattr(load(component.target), "rewards", None) if component.kind == "judge" else None
    return dict(offered) if isinstance(offered, Mapping) else None
