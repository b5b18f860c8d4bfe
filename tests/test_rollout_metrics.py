"""Metrics of a step's samples, compared with numbers counted by hand; and which metrics an evaluation cannot have."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from gotr1_core.advantages import constant_groups
from gotr1_core.batch import Batch, join_batches
from gotr1_core.chain import Chain, Region, parse
from gotr1_core.engine.rollout_metrics import nan_fractions, rollout_metrics
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, Sampling

RED, BLUE, BROKEN = (
    Chain.of([Region("red", (0, 0, 9, 9))]),
    Chain.of([Region("blue", (0, 0, 9, 9)), Region("b", (1, 1, 2, 2))]),
    parse("<|obj_start|>"),
)
NAN = math.nan


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (2, 2), (shade, 0, 0))


def batch(groups: list[list[tuple[Chain, int | None, float, dict[str, float]]]], images: int = 1, cut: int = 0) -> Batch:
    """Groups of samples as (chain, shade of the picture or None, reward, scores). The ``images`` of a plan are neighbours."""
    samples = [
        Sample(Prompt(f"p{i}"), chain, None if shade is None else picture(shade), (i, k // images, k % images), scores, total)
        for i, group in enumerate(groups)
        for k, (chain, shade, total, scores) in enumerate(group)
    ]
    chains = tuple(s.chain for s in samples[::images])
    lengths = torch.arange(len(chains)) + 1  # 1, 2, 3, ... tokens
    mask = torch.arange(len(chains)) < lengths.unsqueeze(1)
    plans = Rollout(PLAN, Sampling(), {"mask": mask, "truncated": torch.arange(len(chains)) < cut}, chains)
    place = torch.tensor([at for at, s in enumerate(samples) if s.image is not None])
    drawn = (
        Rollout(IMAGE, Sampling(), {"mask": torch.ones(len(place), 1, dtype=torch.bool), "parent": place // images}) if len(place) else None
    )
    rewards = torch.tensor([s.reward for s in samples], dtype=torch.float64).view(len(groups), -1, images)
    return Batch(tuple(Prompt(f"p{i}") for i in range(len(groups))), plans, drawn, place, tuple(samples), rewards)


def numbers(found: Batch) -> dict[str, float]:
    constant = constant_groups(found.rewards, 1e-9)
    return rollout_metrics(found, constant, idle=bool(constant.all())).reduce(Accelerator(cpu=True))


def test_every_number_by_hand() -> None:
    one = [(RED, 1, 0.2, {"sem": 0.5, "pi": 0.4}), (RED, 1, 0.4, {"sem": 0.5, "pi": NAN}), (BLUE, 2, NAN, {"sem": NAN, "pi": 1.0})]
    two = [(RED, 3, 0.0, {"sem": 1.0, "pi": 0.0}), (BROKEN, None, 0.0, {"sem": 0.0}), (BROKEN, 4, 0.0, {"sem": 0.0, "pi": 0.0})]
    found = numbers(batch([one, two], cut=2))
    assert found == {
        "reward": pytest.approx(0.6 / 5),
        "group_std": pytest.approx((0.02**0.5 + 0) / 2),  # of 0.2 and 0.4 the standard deviation is the root of 0.02
        "constant_groups": 0.5,
        "idle": 0.0,
        "nan": pytest.approx(1 / 6),
        "malformed": pytest.approx(2 / 6),
        "truncated": pytest.approx(2 / 6),
        "chain_tokens": pytest.approx(3.5),
        "regions": pytest.approx((1 + 1 + 2 + 1 + 0 + 0) / 6),
        "pruned": pytest.approx(1 / 6),
        "reward.sem": pytest.approx(2 / 5),
        "nan.sem": pytest.approx(1 / 6),
        "reward.pi": pytest.approx(1.4 / 4),
        "nan.pi": pytest.approx(1 / 5),  # of those that were asked for it
        "not_finite.plan": 0.0,
        "not_finite.image": 0.0,
        "duplicates.plan": pytest.approx((1 + 1) / (2 + 2)),  # in each group one of two others repeats
        "duplicates.image": pytest.approx((1 + 0) / (2 + 1)),  # of two pictures in the second group none does
    }


@pytest.mark.parametrize(("chains", "share"), [([RED] * 4, 1.0), ([RED, BLUE] * 2, 2 / 3), ([RED, BLUE, BROKEN, parse("x")], 0.0)])
def test_duplicates(chains: list[Chain], share: float) -> None:
    assert numbers(batch([[(chain, None, 0.0, {}) for chain in chains]]))["duplicates.plan"] == pytest.approx(share)


def test_prompts_may_have_the_same_plan() -> None:
    group = [(RED, 1, 0.0, {}), (BLUE, 2, 1.0, {})]
    found = numbers(batch([group, group, group]))
    assert found["duplicates.plan"] == found["duplicates.image"] == 0.0


def test_a_plan_is_counted_once_however_many_pictures_it_has() -> None:
    group = [(RED, 1, 0.0, {}), (RED, 2, 1.0, {}), (BLUE, 2, 0.0, {}), (BLUE, 2, 1.0, {})]
    found = numbers(batch([group], images=2))
    assert found["duplicates.plan"] == 0.0
    assert found["duplicates.image"] == pytest.approx(2 / 3)
    assert found["regions"] == 1.5


def test_a_group_of_one_repeats_nothing() -> None:
    found = numbers(batch([[(RED, 1, 0.5, {})]]))
    assert not {"duplicates.plan", "duplicates.image", "group_std"} & found.keys()


def test_rounds_of_refill_are_reported_together() -> None:
    alike, other = [(RED, 1, 0.0, {}), (RED, 1, 0.0, {})], [(RED, 1, 0.0, {}), (BLUE, 2, 1.0, {})]
    found = numbers(join_batches([batch([alike]), batch([other, other])]))
    assert found["constant_groups"] == found["duplicates.plan"] == found["duplicates.image"] == pytest.approx(1 / 3)


def test_nothing_to_learn_from() -> None:
    found = numbers(batch([[(RED, 1, NAN, {"pi": NAN}), (BLUE, 2, NAN, {"pi": NAN})]]))
    assert (found["idle"], found["nan"], found["nan.pi"]) == (1.0, 1.0, 1.0)
    assert not {"reward", "reward.pi", "group_std"} & found.keys()


def test_what_an_evaluation_lacks() -> None:
    samples = [
        Sample(Prompt("a"), RED, None, scores={"sem": 1.0, "pi": NAN}, reward=NAN),
        Sample(Prompt("b"), RED, None, scores={"sem": 1.0}, reward=1.0),
    ]
    assert nan_fractions(samples) == {"nan": 0.5, "nan.pi": 1.0}
    assert nan_fractions([replace(samples[1])]) == {}
