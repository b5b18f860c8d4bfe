"""``gotr1 runs``: lists runs with what became of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gotr1_core.cli.common import Json
from gotr1_core.engine.console import print

if TYPE_CHECKING:
    from gotr1_core.runs.listing import RunSummary


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the runs, or one run.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Lists the runs in a folder: outcome, steps, score before and after, size."""
    from gotr1_core.cli.tables import format_table
    from gotr1_core.runs.listing import find_runs, summarize_run

    runs = [summarize_run(path) for path in find_runs(folder)]
    if as_json:
        print(json.dumps([asdict(run) for run in runs], ensure_ascii=False))
    elif not runs:
        print(f"no runs in {folder}")
    else:
        rows = [(run.run, run.outcome, f"{run.done} of {run.steps}", _score(run), _size(run.size), run.error) for run in runs]
        print(format_table(("run", "outcome", "steps", "score", "size", "why"), rows), end="")


def _score(run: RunSummary) -> str:
    if run.before is None and run.score is None:
        return "-"
    before, score = (f"{value:.3f}" if value is not None else "-" for value in (run.before, run.score))
    return f"{run.metric} {before} to {score}"


def _size(count: float) -> str:
    units = iter(("kB", "MB", "GB", "TB"))
    text = f"{count:.0f} B"
    while count >= 1000:
        count /= 1000
        text = f"{count:.1f} {next(units, 'PB')}"
    return text
