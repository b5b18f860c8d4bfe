"""``gotr1 evaluate``: draws the prompts of a benchmark and prints what it measures."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gotr1_core.cli.common import AcceptChanges, BatchSize, Json, PresetName, complete_names, policies_to_draw, registry

if TYPE_CHECKING:
    from gotr1_core.evaluation import Estimate


def command(
    override: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as sampling.temperature=0.")] = None,
    benchmark: Annotated[str, typer.Option(help="The benchmark to run.", autocompletion=complete_names("benchmark"))] = "scenes",
    checkpoint: Annotated[Path | None, typer.Option(help="A run, or one of its checkpoints. Without it, the untrained model.")] = None,
    preset: PresetName = None,
    count: Annotated[int | None, typer.Option(min=1, help="Use only the first COUNT prompts.")] = None,
    seed: Annotated[int, typer.Option(help="Evaluations with the same seed draw the same samples.")] = 1,
    batch: BatchSize = 64,
    accept_changes: AcceptChanges = False,
    as_json: Json = False,
) -> None:
    """Draws the prompts of a benchmark and measures the samples. Means come with their 95 % intervals."""
    from gotr1_core.cli.tables import format_table
    from gotr1_core.components.build import make_component
    from gotr1_core.config.models import ComponentConfig
    from gotr1_core.evaluation import draw_samples, estimate
    from gotr1_core.pictures.sample_files import null_for_nan

    suite = make_component(registry(), "benchmark", ComponentConfig(name=benchmark))
    prompts = suite.prompts(count)  # before weights are loaded, which takes longer
    planner, renderer, sampling = policies_to_draw(registry(), checkpoint, preset, {}, override or [], accept_changes=accept_changes)
    assert planner is not None  # policies_to_draw returns one, since `planned` is true
    samples = draw_samples(planner, renderer, prompts, sampling=sampling, seed=seed, batch=batch)
    measured = suite.measure(samples)
    rows: dict[str, dict[str, Estimate]] = defaultdict(dict)  # by category and score
    for category in ["all", *dict.fromkeys(s.prompt.category for s in samples)]:
        for name, values in measured.items():
            in_category = [v for v, s in zip(values, samples, strict=True) if category in ("all", s.prompt.category)]
            rows[category][name] = estimate(in_category)
    if as_json:
        scores = {c: {n: {k: null_for_nan(v) for k, v in vars(e).items()} for n, e in cells.items()} for c, cells in rows.items()}
        print(json.dumps({"benchmark": benchmark, "count": len(samples), "scores": scores}))
        return
    title = f"{benchmark}, {len(samples)} prompts, mean ± half of the 95 % interval"
    lines = [(category, *map(_cell, cells.values())) for category, cells in rows.items()]
    print(format_table(("category", *measured), lines, title), end="")


def _cell(estimate: Estimate) -> str:
    if estimate.count == 0:
        return "could not be scored"
    return f"{estimate.mean:.3f}" if estimate.count == 1 else f"{estimate.mean:.3f} ± {estimate.half_width:.3f}"
