"""``gotr1 plugins``"""

from __future__ import annotations

from typing import Annotated

import typer

from gotr1_core.cli.common import registry


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Lists what is installed, component by component, and plugins that do not load."""
    import json

    rows = [
        {
            "kind": p.component.kind,
            "name": p.component.name,
            "plugin": f"{p.distribution} {p.version}".strip(),
            "summary": p.component.summary,
        }
        for p in registry().provided
    ]
    failed = [{"plugin": b.distribution, "error": b.error} for b in registry().broken]
    if as_json:
        print(json.dumps({"components": rows, "failed": failed}))
        return
    for row in rows:
        print(f"{row['kind']:<10} {row['name']:<12} {row['plugin']:<20} {row['summary']}")
    for broken in failed:
        print(f"failed     {'':<12} {broken['plugin']:<20} {broken['error']}")
