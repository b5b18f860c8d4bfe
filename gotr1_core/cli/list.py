"""``gotr1 list``: prints the components that the plugins provide."""

from __future__ import annotations

import json

from gotr1_core.cli.common import Json, KindArgument, parse_kind, registry
from gotr1_core.engine.console import print


def command(kind: KindArgument = None, as_json: Json = False) -> None:
    """Lists components by kind and name."""
    from gotr1_core.cli.tables import format_table
    from gotr1_core.hookspecs import KINDS

    components = [provided for each in ([parse_kind(kind)] if kind else KINDS) for provided in registry().of_kind(each)]
    if as_json:
        print(json.dumps([p.facts for p in components], ensure_ascii=False))
        return
    lines = [(p.component.kind, p.component.name, f"{p.distribution} {p.version}".strip(), p.component.summary) for p in components]
    columns = ("kind", "name", "plugin", "summary")
    first = 1 if kind else 0  # without the column of a kind that the user named
    print(format_table(columns[first:], [line[first:] for line in lines]), end="")
