"""Which denoising steps train: one window for a group, other windows for other groups, and only steps that have noise."""

from __future__ import annotations

import pytest
import torch

from gotr1_diffusers.options import SdxlOptions
from gotr1_diffusers.windows import choose_steps, eligible_steps

NOISE = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


def options(**changed: object) -> SdxlOptions:
    return SdxlOptions.model_validate({"trained_steps": 3, **changed})


def test_steps_with_noise_within_the_range_may_train() -> None:
    assert eligible_steps(NOISE, options()).tolist() == list(range(9))
    assert eligible_steps(NOISE, options(trained_range=(0.0, 0.5))).tolist() == [0, 1, 2, 3, 4]
    assert eligible_steps(NOISE, options(trained_range=(0.5, 1.0))).tolist() == [5, 6, 7, 8]
    assert eligible_steps(torch.zeros(10), options()).tolist() == []


def test_no_step_trains_if_too_few_have_noise() -> None:
    assert eligible_steps(NOISE, options(trained_range=(0.7, 1.0))).tolist() == []
    assert eligible_steps(NOISE, options(trained_range=(0.6, 1.0))).tolist() == [6, 7, 8]
    assert eligible_steps(NOISE, options(trained_range=(0.7, 1.0), trained="all")).tolist() == [7, 8]
    assert eligible_steps(NOISE, options(trained_range=(0.9, 1.0), trained="all")).tolist() == []


@pytest.mark.parametrize("kind", ["window", "subset"])
def test_a_group_has_one_choice(kind: str) -> None:
    groups = [group for group in range(300) for _ in range(2)]
    found = choose_steps(groups, torch.arange(9), options(trained=kind))
    assert found.shape == (600, 3)
    assert torch.equal(found[::2], found[1::2])
    assert (found.diff(dim=1) > 0).all()
    if kind == "window":
        assert (found.diff(dim=1) == 1).all()
        assert set(found[:, 0].tolist()) == set(range(7))  # each of the seven windows; one in 300 groups misses none
    else:
        assert len({tuple(row) for row in found.tolist()}) > 60  # of 84
        counts = torch.bincount(found[::2].flatten(), minlength=9).float() / 300
        assert (counts - 1 / 3).abs().max() < 4.5 * (2 / 9 / 300) ** 0.5  # standard errors of a share of a third


def test_the_choice_depends_on_the_group_alone() -> None:
    among = torch.arange(9)
    whole = choose_steps([5, 6, 7, 5], among, options())
    assert torch.equal(choose_steps([7], among, options()), whole[2:3])
    assert torch.equal(whole[0], whole[3])


def test_every_step_or_none() -> None:
    assert torch.equal(choose_steps([1, 2], torch.tensor([0, 4]), options(trained="all")), torch.tensor([[0, 4], [0, 4]]))
    assert choose_steps([1, 2], torch.tensor([], dtype=torch.long), options()).shape == (2, 0)


@pytest.mark.parametrize("given", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.7, 0.2)])
def test_a_range_rises(given: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="trained_range"):
        options(trained_range=given)
