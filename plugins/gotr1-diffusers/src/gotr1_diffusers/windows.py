"""Which denoising steps train: drawn for a prompt's group as a whole, so that siblings are compared by the same steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gotr1_core.sampling import seed_for
from gotr1_diffusers.options import DiffusionOptions


def eligible(std: Tensor, options: DiffusionOptions) -> Tensor:
    """Numbers of the steps that may train: those with noise, within the options' range. None where these are too few: drawing needs none,
    and scoring says what is missing."""
    count = len(std)
    begin, end = options.trained_range
    middle = (torch.arange(count) + 0.5) / count
    found = ((std > 0) & (middle >= begin) & (middle < end)).nonzero().flatten()
    return found if options.trained == "all" or len(found) >= options.trained_steps else found[:0]


def chosen(groups: Sequence[int], among: Tensor, options: DiffusionOptions) -> Tensor:
    """The steps that train, ``[B, T]`` and rising, of rows whose groups have these seeds; the same for equal seeds."""
    if options.trained == "all" or not len(among):
        return among.expand(len(groups), len(among))
    kinds = {group: _of_group(group, among, options) for group in dict.fromkeys(groups)}
    return torch.stack([kinds[group] for group in groups]) if groups else among.new_zeros(0, options.trained_steps)


def _of_group(group: int, among: Tensor, options: DiffusionOptions) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(group, "steps"))
    count = options.trained_steps
    if options.trained == "window":
        first = int(torch.randint(len(among) - count + 1, (), generator=generator))
        return among[first : first + count]
    return among[torch.randperm(len(among), generator=generator)[:count].sort().values]
