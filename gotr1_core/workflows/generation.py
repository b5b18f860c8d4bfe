"""Plans and draws prompts, or draws a chain that somebody wrote or edited."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from gotr1_core.border.calls import call_plan, call_render
from gotr1_core.chain import Chain
from gotr1_core.protocols import Planner, Renderer
from gotr1_core.samples import Prompt, Sample, Sampling, make_samples
from gotr1_core.sampling import seed_for


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
    """Returns samples of one prompt, each with a plan and a picture; see :func:`draw_prompts`, which also explains the arguments.

    ``report`` is called after each batch with the number of samples made so far.
    """
    samples: list[Sample] = []
    prompts = [Prompt(prompt, "generate")]
    for sample in draw_prompts(planner, renderer, prompts, number=number, seed=seed, sampling=sampling, batch=batch):
        samples.append(sample)
        if report is not None and (len(samples) % batch == 0 or len(samples) == number):
            report(len(samples))
    return samples


def draw_prompts(
    planner: Planner | Chain,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    *,
    number: int = 1,
    seed: int = 0,
    sampling: Sampling,
    batch: int = 16,
) -> Iterator[Sample]:
    """Yields ``number`` samples of every prompt, prompt by prompt. Sample i of a prompt depends on prompt, seed and i alone.

    A sample whose plan or picture is not finite (``not_finite``) has no picture.

    A given chain is drawn with the seeds that planned pictures would have. So if a chain is edited, only what was edited changes.

    Args:
        planner: writes the plans; or a chain to draw in every picture, and then nothing is planned.
        renderer: draws the pictures; if it is also the planner, it gets the plans that it wrote.
        prompts: what to draw.
        number: how many samples of each.
        batch: how many samples are made at the same time.
    """
    for start in range(0, number * len(prompts), batch):
        rows = [divmod(row, number) for row in range(start, min(start + batch, number * len(prompts)))]
        yield from _draw(planner, renderer, prompts, rows, seed=seed, sampling=sampling)


@torch.no_grad()  # not around the generator above: it would hold for whoever draws from it, too
def _draw(
    planner: Planner | Chain,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    rows: Sequence[tuple[int, int]],
    *,
    seed: int,
    sampling: Sampling,
) -> list[Sample]:
    """Draws samples, ``rows`` being the numbers of prompt and sample of each."""
    chosen = [prompts[number] for number, _ in rows]
    if isinstance(planner, Chain):
        plans, chains = None, [planner] * len(rows)
    else:
        plans = call_plan(planner, chosen, seeds=[seed_for(seed, i, "plan") for _, i in rows], sampling=sampling)
        chains = list(plans.chains)
    own_plans = plans if planner is renderer else None  # type: ignore[comparison-overlap]
    seeds = [seed_for(seed, i, "image") for _, i in rows]
    images = call_render(renderer, chosen, chains, seeds=seeds, sampling=sampling, plans=own_plans)
    return make_samples(chosen, chains, plans, images, [(number, i, 0) for number, i in rows])
