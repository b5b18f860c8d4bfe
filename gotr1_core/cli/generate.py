"""``gotr1 generate``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.cli.common import device, load_config, restore
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
    planner: Annotated[str | None, typer.Option(help="What writes the chain.")] = None,
    renderer: Annotated[str | None, typer.Option(help="What draws it.")] = None,
    preset: Annotated[str | None, typer.Option(help="A named config to start from; scenes if nothing else is named.")] = None,
) -> None:
    """Plans and draws a prompt: PNG, the chain as JSON, and the boxes drawn over the picture."""
    import json

    from gotr1_core.build import build, make_sampling
    from gotr1_core.config import RunConfig, SamplingConfig, merge, overrides, validate
    from gotr1_core.generate import generate
    from gotr1_core.plugins import Registry
    from gotr1_core.tracking import write_samples

    if number < 1:
        raise UsageError(f"-n {number}: there is nothing to draw", hint="give 1 or more")
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint="say what to draw")
    registry = Registry()
    if checkpoint is not None:
        _, parts, sampling = restore(registry, checkpoint)
        changed = overrides(override or [])
        if changed.keys() - {"sampling"}:
            raise UsageError("with --checkpoint only sampling.… can be changed", hint="the rest is the run's own")
        kept = SamplingConfig(**vars(sampling)).model_dump()
        sampling = make_sampling(validate(SamplingConfig, merge(kept, changed.get("sampling", {}))))
    else:
        data = load_config(registry, None, preset, {"planner": planner, "renderer": renderer}, override or [])
        config = validate(RunConfig, data)
        parts = build(registry, config.model_copy(update={"lora": None}), device=device())
        sampling = make_sampling(config.evaluation.sampling or config.sampling)
    samples = generate(parts.planner, parts.renderer, prompt, number=number, seed=seed, sampling=sampling)
    for path, sample in zip(write_samples(out, samples), samples, strict=True):
        print(json.dumps({"image": str(path), "chain": sample.chain.raw}, ensure_ascii=False))
