"""``gotr1 evaluate``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.cli.common import device, load_config, restore


def command(
    override: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the model, without --checkpoint.")
    ] = None,
    benchmark: Annotated[str, typer.Option(help="Which benchmark.")] = "scenes",
    checkpoint: Annotated[Path | None, typer.Option(help="A run, or one of its checkpoints; else the untrained model.")] = None,
    preset: Annotated[str | None, typer.Option(help="A named config to start from; scenes if nothing else is named.")] = None,
    count: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    seed: Annotated[int, typer.Option(help="Evaluations of the same seed draw the same.")] = 1,
    batch: Annotated[int, typer.Option(help="Prompts drawn at the same time.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Draws a benchmark's prompts and prints its numbers, with 95 % intervals."""
    import json
    from collections import defaultdict

    from rich.console import Console
    from rich.table import Table

    from gotr1_core.build import build, component, make_sampling
    from gotr1_core.config import ComponentConfig, RunConfig, validate
    from gotr1_core.evaluate import draw, estimate
    from gotr1_core.plugins import Registry

    registry = Registry()
    suite = component(registry, "benchmark", ComponentConfig(name=benchmark))
    if checkpoint is not None:
        _, parts, sampling = restore(registry, checkpoint)
    else:
        config = validate(RunConfig, load_config(registry, None, preset, {}, override or []))
        parts = build(registry, config.model_copy(update={"lora": None}), device=device())
        sampling = make_sampling(config.evaluation.sampling or config.sampling)
    samples = draw(parts.planner, parts.renderer, suite.prompts(count), sampling=sampling, seed=seed, batch=batch)
    measured = suite.measure(samples)
    rows = defaultdict(dict)
    for category in ["all", *dict.fromkeys(s.prompt.category for s in samples)]:
        for name, values in measured.items():
            chosen = [v for v, s in zip(values, samples, strict=True) if category in ("all", s.prompt.category)]
            rows[category][name] = vars(estimate(chosen))
    if as_json:
        print(json.dumps({"benchmark": benchmark, "count": len(samples), "scores": rows}))
        return
    table = Table("category", *measured, title=f"{benchmark}, {len(samples)} prompts, mean ± half of the 95 % interval")
    for category, cells in rows.items():
        table.add_row(category, *[f"{c['mean']:.3f} ± {c['half_width']:.3f}" for c in cells.values()])
    Console().print(table)
