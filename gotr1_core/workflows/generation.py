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
    planner: Planner | Chain,
    renderer: Renderer,
    prompt: str,
    *,
    number: int = 1,
    seed: int = 0,
    sampling: Sampling,
    batch: int = 16,
    report: Callable[[int], None] | None = None,
) -> list[Sample]:
    """Returns samples of one prompt, each with a plan and a picture. Sample i depends on prompt, seed and i alone.

    A given chain is drawn with the seeds that planned pictures would have. So if a chain is edited, only what was edited changes.

    Args:
        planner: writes the plans; or a chain to draw in every picture, and then nothing is planned.
        renderer: draws the pictures; if it is also the planner, it gets the plans that it wrote.
        prompt: the user's text.
        number: how many samples.
        batch: how many samples are made at the same time.
        report: called after each batch with the number of samples made so far.
    """
    samples: list[Sample] = []
    prompt_of_all = Prompt(prompt, "generate")
    for start in range(0, number, batch):
        numbers = range(start, min(start + batch, number))
        prompts = [prompt_of_all] * len(numbers)
        if isinstance(planner, Chain):
            plans, chains = None, [planner] * len(numbers)
        else:
            plans = planner.plan(prompts, seeds=[seed_for(seed, i, "plan") for i in numbers], sampling=sampling)
            chains = list(plans.chains)
        own_plans = plans if planner is renderer else None  # type: ignore[comparison-overlap]
        seeds = [seed_for(seed, i, "image") for i in numbers]
        images = renderer.render(prompts, chains, seeds=seeds, sampling=sampling, plans=own_plans)
        samples += [Sample(prompt_of_all, chain, image, (0, i, 0)) for i, chain, image in zip(numbers, chains, images.images, strict=True)]
        if report is not None:
            report(len(samples))
    return samples
