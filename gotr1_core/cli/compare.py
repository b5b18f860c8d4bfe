"""``gotr1 compare``: prints how the held-out scores of runs differ, prompt by prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import Json
from gotr1_core.engine.console import print

if TYPE_CHECKING:
    from gotr1_core.runs.listing import Comparison


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs; the first is compared with each other one.")],
    evaluation: Annotated[str, typer.Option(help="Which evaluation of each run: before, after, or another in held-out.json.")] = "after",
    as_json: Json = False,
) -> None:
    """Prints how held-out scores differ, paired by prompt, by category, with 95 % intervals. Of one run: from before training."""
    from gotr1_core.runs.listing import compare_runs, differing_settings

    comparisons = compare_runs(runs, evaluation)
    if differing := differing_settings(runs):
        print(f"warning: the runs differ in {', '.join(differing)}, so scores may differ for that reason", file=sys.stderr)
    if as_json:
        print(json.dumps({"evaluation": evaluation, "comparisons": [_facts(comparison) for comparison in comparisons]}, ensure_ascii=False))
        return
    for number, comparison in enumerate(comparisons):
        print("\n" if number else "", _table(comparison), sep="", end="")


def _facts(comparison: Comparison) -> dict[str, Any]:
    from gotr1_core.pictures.sample_files import null_for_nan

    scores = {
        category: {name: {key: null_for_nan(value) for key, value in vars(change).items()} for name, change in changes.items()}
        for category, changes in comparison.scores.items()
    }
    return {"from": comparison.start, "to": comparison.end, "prompts": comparison.prompts, "scores": scores}


def _table(comparison: Comparison) -> str:
    from gotr1_core.cli.tables import format_table

    rows = [(category, *(change.text("+") for change in changes.values())) for category, changes in comparison.scores.items()]
    title = f"from {comparison.start} to {comparison.end}, {comparison.prompts} prompts in both, mean change [95 % interval]"
    return format_table(("category", *next(iter(comparison.scores.values()))), rows, title)
