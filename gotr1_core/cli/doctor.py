"""``gotr1 doctor``"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
    from gotr1_core.doctor.environment import diagnose

    found = list(diagnose(registry()))
    if as_json:
        print(json.dumps([asdict(d) for d in found], ensure_ascii=False))
    else:
        rows = [("FAILED" if not d.healthy else "note" if d.hint else "ok", d.name, d.found, d.hint) for d in found]
        print(table(("", "what", "found", "what to do"), rows), end="")
    return not all(d.healthy for d in found)


def _run(folder: Path, *, as_json: bool) -> bool:
    import json

    from gotr1_core.config.merge import read_yaml
    from gotr1_core.config.models import RunConfig, validate
    from gotr1_core.doctor.rules import examine_run
    from gotr1_core.runs.records import CONFIG

    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is no run", hint="give the folder that `gotr1 train` named")
    config = validate(RunConfig, read_yaml(folder / CONFIG))
    rows = _metrics(folder)
    steps = sum("evaluation" not in row for row in rows)
    found = examine_run(rows, config)
    if as_json:
        told = [
            {
                "step": f.step,
                "rule": f.rule.name,
                "metric": f.metric,
                "measured": f.measured,
                "limit": f.rule.limit,
                "stops": f.rule.stops,
                "explanation": f.rule.explanation,
                "hint": f.rule.hint,
            }
            for f in found
        ]
        print(json.dumps({"steps": steps, "findings": told}, ensure_ascii=False))
    else:
        for finding in found:
            print(f"{finding.message}{' It stops the run.' if finding.rule.stops else ''}\n  what to do: {finding.rule.hint}")
        if not found:
            print(f"{steps} steps, nothing found")
    return bool(found)


def _metrics(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The rows of a run's metrics, all of them numbers but the names of evaluations."""
    from gotr1_core.runs.records import METRICS, Records

    path = folder / METRICS
    if not path.is_file():
        raise UsageError(f"{folder} has no {METRICS}", hint="put it back; without its numbers nothing can be said about a run")
    rows = Records(folder, main=False).rows
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if not isinstance(value, int | float | None) and name != "evaluation":
                raise UsageError(
                    f"{path} is damaged: line {number} says {name} is {value!r}, which is no number", hint="put it back as it was"
                )
        if "step" not in row:
            raise UsageError(f"{path} is damaged: line {number} has no step", hint="put it back as it was")
    return rows
