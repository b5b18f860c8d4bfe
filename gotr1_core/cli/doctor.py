"""``gotr1 doctor``: prints what the doctor finds in this installation, or in a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gotr1_core.cli.common import Json, registry
from gotr1_core.engine.console import print
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
    """Prints how a run ended, and every finding. True if it failed or was killed, or if there is a finding."""
    from gotr1_core.doctor.rules import add_examples, examine_run
    from gotr1_core.runs.outcome import FINISHED, read_outcome
    from gotr1_core.runs.records import run_config
    from gotr1_core.runs.saved_samples import saved_words
    from gotr1_core.runs.stage_one import is_stage_one

    if is_stage_one(folder):
        return _examine_stage_one(folder, as_json=as_json)
    config, ended = run_config(folder), read_outcome(folder)
    rows = _read_metrics(folder)
    steps = sum("evaluation" not in row for row in rows)
    findings = add_examples(examine_run(rows, config), saved_words(folder))
    if as_json:
        facts = [
            {"step": f.step, "rule": f.rule.name, "metric": f.metric, "measured": f.measured, "examples": list(f.examples)}
            | {key: getattr(f.rule, key) for key in ("limit", "stops", "explanation", "hint")}
            for f in findings
        ]
        print(json.dumps({**asdict(ended), "steps": steps, "findings": facts}, ensure_ascii=False))
    else:
        if ended.outcome != FINISHED:
            told = [replace(finding, examples=()).message for finding in findings]  # the error has examples of its own
            reported = any(ended.error.startswith(message) for message in told)  # below, with what to do
            error = f": {ended.error}\n  what to do: {ended.hint}" if ended.error and not reported else ""
            print(f"{ended.outcome} after {steps} of {config.steps} steps{error}")
        for finding in findings:
            print(f"{finding.message}{' It stops the run.' if finding.rule.stops else ''}\n  what to do: {finding.rule.hint}")
        if not findings:
            print(f"{steps} steps, nothing found")
    return bool(findings) or ended.is_bad


def _examine_stage_one(folder: Path, *, as_json: bool) -> bool:
    """Prints how a supervised training ended and what became of its loss. True if it failed or was killed, or lost steps."""
    from gotr1_core.errors import NOT_FINITE_HINT
    from gotr1_core.pictures.sample_files import null_for_nan
    from gotr1_core.runs.stage_one import read_stage_one

    stage = read_stage_one(folder)
    if as_json:
        losses = [null_for_nan(loss) for loss in stage.losses]
        print(json.dumps({**asdict(stage.ended), "steps": stage.done, "loss": losses, "not_finite": stage.lost}, ensure_ascii=False))
    else:
        error = f": {stage.ended.error}\n  what to do: {stage.ended.hint}" if stage.ended.error else ""
        print(f"stage one, {stage.ended.outcome} after {stage.done} of {stage.config.steps} steps{error}")
        print("loss {} to {}".format(*("-" if loss is None else f"{loss:.4g}" for loss in stage.losses)))
        if stage.lost:
            print(f"the loss or the gradient of {stage.lost} steps is not finite\n  what to do: {NOT_FINITE_HINT}")
    return bool(stage.lost) or stage.ended.is_bad


def _read_metrics(folder: Path) -> Sequence[Mapping[str, Any]]:
    """Reads the rows of a run's metrics."""
    from gotr1_core.runs.records import METRICS, Records

    path = folder / METRICS
    if not path.is_file():
        raise UsageError(f"{folder} has no {METRICS}", hint="restore the original file; the doctor reads its numbers")
    return Records(folder, main=False).rows
