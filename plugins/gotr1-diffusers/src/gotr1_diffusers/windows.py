"""Chooses the denoising steps that train, once for a prompt's group, so that its samples are compared by the same steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gotr1_core.sampling import seed_for
from gotr1_diffusers.options import DiffusionOptions


def eligible_steps(std: Tensor, options: DiffusionOptions) -> Tensor:
    """Numbers ``[K]`` of the steps that may train: those with noise, ``std [N]`` above 0, within the options' range.

    Empty if there are fewer than must train. That is no error here, as drawing needs none: the training pass reports it.
    """
    count = len(std)
    begin, end = options.trained_range
    middle = (torch.arange(count) + 0.5) / count
    eligible = ((std > 0) & (middle >= begin) & (middle < end)).nonzero().flatten()
    return eligible if options.trained == "all" or len(eligible) >= options.trained_steps else eligible[:0]


def choose_steps(groups: Sequence[int], eligible: Tensor, options: DiffusionOptions) -> Tensor:
    """The steps ``[B, T]`` that train in each of B rows, in rising order, chosen from ``eligible [K]``.

    ``groups`` are the seeds of the rows' groups. Rows with equal seeds have the same steps.
    """
    if options.trained == "all" or not len(eligible):
        return eligible.expand(len(groups), len(eligible))
    steps = {group: _steps_of_group(group, eligible, options) for group in dict.fromkeys(groups)}
    return torch.stack([steps[group] for group in groups]) if groups else eligible.new_zeros(0, options.trained_steps)


def _steps_of_group(group: int, eligible: Tensor, options: DiffusionOptions) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(group, "steps"))
    count = options.trained_steps
    if options.trained == "window":
        first = int(torch.randint(len(eligible) - count + 1, (), generator=generator))
        return eligible[first : first + count]
    return eligible[torch.randperm(len(eligible), generator=generator)[:count].sort().values]
