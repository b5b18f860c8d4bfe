"""``gotr1 list``: prints the components that the plugins provide."""

from __future__ import annotations

from gotr1_core.cli.common import Json, KindArgument, parse_kind, registry


def command(kind: KindArgument = None, as_json: Json = False) -> None:
    """Lists components by kind and name."""
    import json

    from gotr1_core.cli.tables import format_table
    from gotr1_core.hookspecs import KINDS

    components = [provided for each in ([parse_kind(kind)] if kind else KINDS) for provided in registry().of_kind(each)]
    if as_json:
        rows = [
            {
                "kind": p.component.kind,
                "name": p.component.name,
                "distribution": p.distribution,
                "version": p.version,
                "summary": p.component.summary,
            }
            for p in components
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return
    lines = [(p.component.kind, p.component.name, f"{p.distribution} {p.version}".strip(), p.component.summary) for p in components]
    columns = ("kind", "name", "plugin", "summary")
    first = 1 if kind else 0  # without the column of a kind that the user named
    print(format_table(columns[first:], [line[first:] for line in lines]), end="")
