"""Chooses the denoising steps that train, once for a prompt's group, so that its samples are compared by the same steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gotr1_core.errors import UsageError
from gotr1_core.samples import Sampling
from gotr1_core.sampling import seed_for
from gotr1_diffusers.options import DiffusionOptions


def eligible_steps(std: Tensor, options: DiffusionOptions) -> Tensor:
    """Numbers ``[K]`` of the steps that may train: those with noise, ``std [N]`` above 0, within the options' range.

    Empty if there are fewer than must train. That is no error here, as drawing needs none: see :func:`check_trained_steps`.
    """
    count = len(std)
    begin, end = options.trained_range
    middle = (torch.arange(count) + 0.5) / count
    eligible = ((std > 0) & (middle >= begin) & (middle < end)).nonzero().flatten()
    return eligible if options.trained == "all" or len(eligible) >= options.trained_steps else eligible[:0]


def check_trained_steps(std: Tensor, options: DiffusionOptions, sampling: Sampling) -> None:
    """Checks that enough steps have noise, ``std [N]`` above 0, to train on.

    Raises:
        UsageError: there are too few within the options' range.
    """
    if not len(eligible_steps(std, options)):
        raise too_few_steps(sampling)


def too_few_steps(sampling: Sampling) -> UsageError:
    """The error of a renderer that should train and has too few steps with noise."""
    return UsageError(
        f"too few of the {sampling.denoising_steps} denoising steps have noise to train on",
        hint="set sampling.image_temperature and the renderer's eta or noise_level above 0, and trained_steps to at most the "
        "number of steps with noise within trained_range",
    )


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
