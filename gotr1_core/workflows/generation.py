"""Plans and draws a prompt, or draws a chain that somebody wrote or edited."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gotr1_core.chain import Chain
from gotr1_core.protocols import Planner, Renderer
from gotr1_core.samples import Prompt, Sample, Sampling
from gotr1_core.sampling import seed_for


@torch.no_grad()
def generate(
    planner: Planner | None,
    renderer: Renderer,
    prompt: str,
    *,
    number: int = 1,
    seed: int = 0,
    sampling: Sampling,
    chain: Chain | None = None,
    batch: int = 16,
    report: Callable[[int], None] | None = None,
) -> list[Sample]:
    """``number`` samples of a prompt, a plan and a picture each; sample i is a function of prompt, seed and i alone.

    With a ``chain`` nothing is planned, no planner is needed, and every picture is of that chain, drawn with the seed that it would
    have had: of an edited chain what was edited changes. ``report`` is told after each batch how many there are.
    """
    if planner is None and chain is None:
        raise ValueError("give a planner or a chain")
    samples: list[Sample] = []
    asked = Prompt(prompt, "generate")
    for start in range(0, number, batch):
        lineage = range(start, min(start + batch, number))
        prompts = [asked] * len(lineage)
        plans, chains = None, [chain] * len(lineage) if chain else []
        if planner is not None and chain is None:
            plans = planner.plan(prompts, seeds=[seed_for(seed, i, "plan") for i in lineage], sampling=sampling)
            chains = list(plans.chains)
        own = plans if planner is renderer else None  # type: ignore[comparison-overlap]
        seeds = [seed_for(seed, i, "image") for i in lineage]
        images = renderer.render(prompts, chains, seeds=seeds, sampling=sampling, plans=own)
        rows = zip(lineage, chains, images.images, strict=True)
        samples += [Sample(asked, drawn, image, (0, i, 0)) for i, drawn, image in rows]
        if report is not None:
            report(len(samples))
    return samples
