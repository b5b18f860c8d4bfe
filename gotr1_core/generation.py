"""Plans and draws a prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gotr1_core.protocols import Planner, Renderer
from gotr1_core.samples import Prompt, Sample, Sampling
from gotr1_core.sampling import seed_for


@torch.no_grad()
def generate(
    planner: Planner,
    renderer: Renderer,
    prompt: str,
    *,
    number: int = 1,
    seed: int = 0,
    sampling: Sampling,
    batch: int = 16,
    report: Callable[[int], None] | None = None,
) -> list[Sample]:
    """``number`` samples of a prompt, a plan and a picture each; sample i is a function of prompt, seed and i alone.

    ``report`` is told after each batch how many there are.
    """
    samples: list[Sample] = []
    asked = Prompt(prompt, "generate")
    for start in range(0, number, batch):
        lineage = range(start, min(start + batch, number))
        prompts = [asked] * len(lineage)
        plans = planner.plan(prompts, seeds=[seed_for(seed, i, "plan") for i in lineage], sampling=sampling)
        own = plans if planner is renderer else None  # type: ignore[comparison-overlap]
        seeds = [seed_for(seed, i, "image") for i in lineage]
        images = renderer.render(prompts, plans.chains, seeds=seeds, sampling=sampling, plans=own)
        rows = zip(lineage, plans.chains, images.images, strict=True)
        samples += [Sample(asked, chain, image, (0, i, 0)) for i, chain, image in rows]
        if report is not None:
            report(len(samples))
    return samples
