"""``gotr1 doctor``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.cli.common import Json, registry
from gotr1_core.errors import UsageError


def command(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run to examine; without one, this installation.")] = None,
    as_json: Json = False,
) -> None:
    """Says what is wrong with this installation, or with a run, and what to do. Exits with 1 if anything is."""
    sick = _run(run, as_json=as_json) if run else _installation(as_json=as_json)
    if sick:
        raise typer.Exit(1)


def _installation(*, as_json: bool) -> bool:
    import json
    from dataclasses import asdict

    from gotr1_core.cli.tables import table
    from gotr1_core.installation import diagnose

    found = list(diagnose(registry()))
    if as_json:
        print(json.dumps([asdict(d) for d in found], ensure_ascii=False))
    else:
        rows = [("ok" if d.healthy else "FAILED", d.name, d.found, "" if d.healthy else d.hint) for d in found]
        print(table(("", "what", "found", "what to do"), rows), end="")
    return not all(d.healthy for d in found)


def _run(folder: Path, *, as_json: bool) -> bool:
    import json

    from gotr1_core.config import RunConfig, read_yaml, validate
    from gotr1_core.doctor import examine
    from gotr1_core.tracking import CONFIG, Records

    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is no run", hint="give the folder that `gotr1 train` named")
    config = validate(RunConfig, read_yaml(folder / CONFIG))
    steps = [row for row in Records(folder, main=False).rows if "seconds" in row]
    found = examine(steps, config)
    if as_json:
        rows = [{"step": f.step, "rule": f.rule.name, "measured": f.measured, "stops": f.rule.stops, "hint": f.rule.hint} for f in found]
        print(json.dumps({"steps": len(steps), "findings": rows}, ensure_ascii=False))
    else:
        for finding in found:
            print(f"{finding.message}\n  what to do: {finding.rule.hint}")
        if not found:
            print(f"{len(steps)} steps, nothing found")
    return bool(found)
