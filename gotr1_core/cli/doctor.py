"""``gotr1 doctor``: prints what the doctor finds in this installation, or in a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gotr1_core.cli.common import Json, registry
from gotr1_core.errors import UsageError


def command(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="The run to examine. Without it, this installation is examined.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Examines this installation, or a run, and says what to do. Exits with 1 if something is wrong."""
    unhealthy = _examine_run(run, as_json=as_json) if run else _examine_installation(as_json=as_json)
    if unhealthy:
        raise typer.Exit(1)


def _examine_installation(*, as_json: bool) -> bool:
    """Prints every diagnosis. True if one is unhealthy."""
    from gotr1_core.cli.tables import format_table
    from gotr1_core.doctor.environment import diagnose

    diagnoses = list(diagnose(registry()))
    if as_json:
        print(json.dumps([asdict(d) for d in diagnoses], ensure_ascii=False))
    else:
        rows = [("FAILED" if not d.healthy else "note" if d.hint else "ok", d.name, d.found, d.hint) for d in diagnoses]
        print(format_table(("", "what", "found", "what to do"), rows), end="")
    return not all(d.healthy for d in diagnoses)


def _examine_run(folder: Path, *, as_json: bool) -> bool:
    """Prints every finding. True if there is one."""
    from gotr1_core.doctor.rules import examine_run
    from gotr1_core.runs.records import run_config

    config = run_config(folder)
    rows = _read_metrics(folder)
    steps = sum("evaluation" not in row for row in rows)
    findings = examine_run(rows, config)
    if as_json:
        facts = [
            {"step": f.step, "rule": f.rule.name, "metric": f.metric, "measured": f.measured}
            | {key: getattr(f.rule, key) for key in ("limit", "stops", "explanation", "hint")}
            for f in findings
        ]
        print(json.dumps({"steps": steps, "findings": facts}, ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{finding.message}{' It stops the run.' if finding.rule.stops else ''}\n  what to do: {finding.rule.hint}")
        if not findings:
            print(f"{steps} steps, nothing found")
    return bool(findings)


def _read_metrics(folder: Path) -> Sequence[Mapping[str, Any]]:
    """Reads the rows of a run's metrics. Refuses values that are not numbers; only the name of an evaluation is text."""
    from gotr1_core.runs.records import METRICS, Records

    path = folder / METRICS
    if not path.is_file():
        raise UsageError(f"{folder} has no {METRICS}", hint="restore the original file; the doctor reads its numbers")
    rows = Records(folder, main=False).rows
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if not isinstance(value, int | float | None) and name != "evaluation":
                raise UsageError(
                    f"{path} is damaged: line {number} says {name} is {value!r}, which is not a number", hint="restore the original file"
                )
        if "step" not in row:
            raise UsageError(f"{path} is damaged: line {number} has no step", hint="restore the original file")
    return rows
