"""``gotr1 evaluate``: draws the prompts of a benchmark, and prints what it and your judges measure."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gotr1_core.cli.common import (
    AcceptChanges,
    BatchSize,
    Json,
    JudgeNames,
    PlannerName,
    PresetName,
    RendererName,
    check_finite,
    complete_names,
    device,
    judges_from_words,
    policies_to_draw,
    registry,
)
from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.engine.intervals import Estimate
    from gotr1_core.samples import Sample


def command(
    override: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as sampling.temperature=0.")] = None,
    benchmark: Annotated[str, typer.Option(help="The benchmark to run.", autocompletion=complete_names("benchmark"))] = "scenes",
    checkpoint: Annotated[Path | None, typer.Option(help="A run, or one of its checkpoints. Without it, the untrained model.")] = None,
    planner: PlannerName = None,
    renderer: RendererName = None,
    judge: JudgeNames = None,
    preset: PresetName = None,
    count: Annotated[int | None, typer.Option(min=1, max=100_000, help="Use only the first COUNT prompts.")] = None,
    seed: Annotated[int, typer.Option(help="Evaluations with the same seed draw the same samples.")] = 1,
    batch: BatchSize = 64,
    out: Annotated[Path | None, typer.Option(help="A new folder for the pictures, and for the scores of every sample.")] = None,
    accept_changes: AcceptChanges = False,
    as_json: Json = False,
) -> None:
    """Draws the prompts of a benchmark and measures the samples. Means come with their 95 % intervals.

    A judge adds its scores to those of the benchmark; judge.KEY=VALUE sets its options, and judge_reminder=SECONDS when the
    judge is named if it does not return.
    """
    from gotr1_core.border.calls import call_benchmark
    from gotr1_core.cli.progress import progress
    from gotr1_core.components.build import make_component, make_judge
    from gotr1_core.config.models import ComponentConfig
    from gotr1_core.engine.files import check_writable
    from gotr1_core.evaluation import draw_batch, measured

    configs, reminder, words = judges_from_words(judge, override or [])
    suite = make_component(registry(), "benchmark", ComponentConfig(name=benchmark))
    prompts = call_benchmark(suite, count)  # before weights are loaded, which takes longer
    if out is not None:
        _check_new(out)
        check_writable(out, hint="choose another folder with --out")
    named = {"planner": planner, "renderer": renderer}
    policy, drawer, sampling = policies_to_draw(registry(), checkpoint, preset, named, words, accept_changes=accept_changes)
    assert policy is not None  # policies_to_draw returns one, since `planned` is true
    judges = {each.label: make_judge(registry(), each, device=device()) for each in configs}

    def draw() -> Iterator[Sample]:
        with progress("drawing", len(prompts)) as report:
            for start in range(0, len(prompts), batch):
                chosen = prompts[start : start + batch]
                samples = draw_batch(policy, drawer, chosen, sampling=sampling, seed=seed, first=start)
                yield from measured(suite, judges, samples, reminder)
                report(start + len(chosen))

    # Without their pictures: thousands would take all memory.
    samples = [replace(sample, image=None) for sample in (draw() if out is None else _written(out, draw()))]
    check_finite(samples)
    _print(benchmark, samples, as_json=as_json)


def _written(out: Path, samples: Iterator[Sample]) -> Iterator[Sample]:
    """Writes samples into a new folder and yields them. If drawing fails, or none is finite, the folder counts as new again."""
    from gotr1_core.pictures.sample_files import SAMPLES, write_each
    from gotr1_core.runs.checkpoint import explain_full_disk

    are_whole = False
    try:
        with explain_full_disk(out, again="evaluate again"):
            for _, sample in write_each(out, samples):
                are_whole |= sample.not_finite is None
                yield sample
    except BaseException:
        are_whole = False
        raise
    finally:
        if not are_whole:
            (out / SAMPLES).unlink(missing_ok=True)


def _check_new(out: Path) -> None:
    """Refuses a folder that has samples already. Runs before any model is loaded."""
    from gotr1_core.pictures.sample_files import SAMPLES

    if (out / SAMPLES).exists():
        raise UsageError(f"{out} already has pictures: {SAMPLES}", hint="choose another --out")


def _print(benchmark: str, samples: Sequence[Sample], *, as_json: bool) -> None:
    from gotr1_core.cli.tables import format_table
    from gotr1_core.engine.intervals import estimate
    from gotr1_core.pictures.sample_files import null_for_nan

    names = dict.fromkeys(name for sample in samples for name in sample.scores)
    rows: dict[str, dict[str, Estimate]] = defaultdict(dict)  # by category and score
    for category in ["all", *dict.fromkeys(s.prompt.category for s in samples)]:
        for name in names:
            in_category = [s.scores.get(name, math.nan) for s in samples if category in ("all", s.prompt.category)]
            rows[category][name] = estimate(in_category)
    if as_json:
        scores = {c: {n: {k: null_for_nan(v) for k, v in vars(e).items()} for n, e in cells.items()} for c, cells in rows.items()}
        print(json.dumps({"benchmark": benchmark, "count": len(samples), "scores": scores}))
        return
    title = f"{benchmark}, {len(samples)} prompts, mean [95 % interval]"
    lines = [(category, *map(_cell, cells.values())) for category, cells in rows.items()]
    print(format_table(("category", *names), lines, title), end="")


def _cell(estimate: Estimate) -> str:
    return estimate.text() if estimate.count else "could not be scored"
