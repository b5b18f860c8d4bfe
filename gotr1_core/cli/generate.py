"""``gotr1 generate``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.cli.common import PlannerName, PresetName, RendererName, drawing, registry
from gotr1_core.errors import UsageError


def command(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    override: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as sampling.guidance_scale=3.")
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", help="How many pictures, each with a plan of its own.")] = 1,
    seed: Annotated[int, typer.Option(help="Pictures of the same seed are the same.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("pictures"),
    checkpoint: Annotated[Path | None, typer.Option(help="A run, or one of its checkpoints.")] = None,
    planner: PlannerName = None,
    renderer: RendererName = None,
    preset: PresetName = None,
) -> None:
    """Plans and draws a prompt: PNG, the chain as JSON, and the boxes drawn over the picture."""
    import json

    from gotr1_core.checkpoint import writing
    from gotr1_core.generate import generate
    from gotr1_core.tracking import write_samples

    if number < 1:
        raise UsageError(f"-n {number}: there is nothing to draw", hint="give 1 or more")
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint="say what to draw")
    named = {"planner": planner, "renderer": renderer}
    writer, drawer, sampling = drawing(registry(), checkpoint, preset, named, override or [])
    samples = generate(writer, drawer, prompt, number=number, seed=seed, sampling=sampling)
    with writing(out, again="draw again"):
        paths = write_samples(out, samples)
    for path, sample in zip(paths, samples, strict=True):
        print(json.dumps({"image": str(path), "chain": sample.chain.raw}, ensure_ascii=False))
