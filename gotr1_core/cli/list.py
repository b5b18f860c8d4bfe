"""``gotr1 list``"""

from __future__ import annotations

from gotr1_core.cli.common import Json, KindArgument, kind_of, registry


def command(kind: KindArgument = None, as_json: Json = False) -> None:
    """Lists components by kind and name."""
    import json

    from gotr1_core.cli.tables import table
    from gotr1_core.hookspecs import KINDS

    found = [p for known in ([kind_of(kind)] if kind else KINDS) for p in registry().of_kind(known)]
    if as_json:
        rows = [
            {
                "kind": p.component.kind,
                "name": p.component.name,
                "distribution": p.distribution,
                "version": p.version,
                "summary": p.component.summary,
            }
            for p in found
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return
    lines = [(p.component.kind, p.component.name, f"{p.distribution} {p.version}".strip(), p.component.summary) for p in found]
    columns = ("kind", "name", "plugin", "summary")
    first = 1 if kind else 0  # a kind that was asked for need not be said
    print(table(columns[first:], [line[first:] for line in lines]), end="")
