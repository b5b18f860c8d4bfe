"""PPO's advantages and returns, compared with a slow reference in plain Python that goes through every episode; and refused settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from gotr1_core.components.build import make_component
from gotr1_core.config.models import ComponentConfig
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.protocols import ActorCritic, Estimates, Experience
from gotr1_core.samples import IMAGE, PLAN, SegmentName
from gotr1_rl.ppo import Ppo, PpoOptions
from gotr1_rl.value import ValueHead

NAN = math.nan
ROUNDING = 1e-9
"""Relative, in float64: sums of some dozen terms, divided by a deviation of about 0.3."""
LENGTHS = [3, 5, 1, 4, 2, 5]
TOTALS = torch.tensor([[[0.2, 0.9], [0.0, 0.0]], [[0.5, NAN], [1.0, 0.3]], [[NAN, NAN], [0.7, 0.1]]], dtype=torch.float64)
"""Three prompts of two plans of two pictures; those of the second plan are pruned, one is unknown, and both of the fifth plan."""
PRUNED = 1
PLACE = [s for s in range(12) if s // 2 != PRUNED]


def experience(names: tuple[SegmentName, ...] = (PLAN, IMAGE), **changed: Any) -> Experience:
    random = torch.Generator().manual_seed(7)
    lengths: dict[SegmentName, list[int]] = {PLAN: LENGTHS, IMAGE: [4] * len(PLACE)}
    masks = {name: torch.arange(max(lengths[name])) < torch.tensor(lengths[name]).unsqueeze(1) for name in names}
    many = [{name: torch.randn(m.shape, dtype=torch.float64, generator=random) for name, m in masks.items()} for _ in range(3)]
    return replace(Experience(TOTALS, torch.tensor(PLACE), masks, *many), **changed)


# -- a slow reference -------------------------------------------------------------------------------------------------------

Place = tuple[SegmentName, int, int]


def slow_gae(rewards: list[float], values: list[float], discount: float, decay: float) -> list[float]:
    following = [*values[1:], 0.0]
    delta = [r + discount * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [math.fsum((discount * decay) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]


def episodes(seen: Experience, options: PpoOptions) -> Iterator[tuple[list[Place], float]]:
    """Every episode: its actions, and the reward at its end. Samples with unknown rewards have no episode."""

    def actions(name: SegmentName, row: int) -> list[Place]:
        return [(name, row, t) for t in range(seen.masks[name].shape[1]) if seen.masks[name][row, t]] if name in seen.masks else []

    rewards = seen.rewards.flatten().tolist()
    drawn = dict(zip(seen.place.tolist(), range(len(seen.place)), strict=True)) if IMAGE in seen.masks else {}
    for plan in range(len(rewards) // 2):
        known = [s for s in (2 * plan, 2 * plan + 1) if not math.isnan(rewards[s])]
        pictures = [(s, actions(IMAGE, drawn[s])) for s in known if s in drawn]
        if options.advantages == "joint" and pictures:
            yield from ((actions(PLAN, plan) + picture, rewards[s]) for s, picture in pictures)
            continue
        yield from ((picture, rewards[s]) for s, picture in pictures)
        if known and PLAN in seen.masks:
            yield actions(PLAN, plan), sum(rewards[s] for s in known) / len(known)


def slow_estimate(seen: Experience, options: PpoOptions) -> tuple[dict[Place, float], dict[Place, float]]:
    """Advantages and returns of every action. An action that belongs to several episodes gets their mean."""
    assert seen.values is not None
    assert seen.reference is not None
    found: dict[Place, list[float]] = {}
    for actions, total in episodes(seen, options):
        rewards = [-options.reward_kl * (seen.old[n][b, t] - seen.reference[n][b, t]).item() for n, b, t in actions]
        rewards[-1] += total
        values = [seen.values[n][b, t].item() for n, b, t in actions]
        for place, advantage in zip(actions, slow_gae(rewards, values, options.discount, options.decay), strict=True):
            found.setdefault(place, []).append(advantage)
    raw = {place: sum(of) / len(of) for place, of in found.items()}
    returns = {(n, b, t): a + seen.values[n][b, t].item() for (n, b, t), a in raw.items()}
    if not options.whiten:
        return raw, returns
    white: dict[Place, float] = {}
    for name in seen.masks:
        of = [a for (n, _, _), a in raw.items() if n == name]
        mean = sum(of) / len(of)
        std = math.sqrt(sum((a - mean) ** 2 for a in of) / len(of))
        white |= {place: (a - mean) / (std + 1e-8) for place, a in raw.items() if place[0] == name}
    return white, returns


def estimated(seen: Experience, options: PpoOptions, head: ValueHead | None = None) -> Estimates:
    return Ppo(options).estimate(seen, head or ValueHead(2, 0), lambda sums: sums)


TRAINED: list[tuple[SegmentName, ...]] = [(PLAN, IMAGE), (PLAN,), (IMAGE,)]
HOW = [{}, {"discount": 0.9, "decay": 0.8}, {"decay": 0.0, "reward_kl": 0.1}, {"discount": 0.95, "decay": 0.9, "reward_kl": 0.3}]


@pytest.mark.parametrize("names", TRAINED, ids="+".join)
@pytest.mark.parametrize(("how", "kind", "white"), list(product(HOW, ("joint", "split"), (True, False))))
def test_advantages_and_returns_are_those_of_the_episodes(names: Any, how: Any, kind: str, white: bool) -> None:
    options = PpoOptions.model_validate({**how, "advantages": kind, "whiten": white})
    seen = experience(names)
    targets = estimated(seen, options)
    advantages, returns = slow_estimate(seen, options)
    assert targets.advantages.keys() == targets.returns.keys() == set(names)
    for name in names:
        for row, t in product(range(len(seen.masks[name])), range(seen.masks[name].shape[1])):
            expected = advantages.get((name, row, t), 0.0)
            assert targets.advantages[name][row, t].item() == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
            wanted = returns.get((name, row, t), NAN)
            assert targets.returns[name][row, t].item() == pytest.approx(wanted, rel=ROUNDING, abs=ROUNDING, nan_ok=True)


def test_joint_and_split_differ_where_values_of_pictures_count() -> None:
    """With discount and decay 1, joint and split agree for a plan's tokens: the mean of the rewards less their value."""
    plain = [estimated(experience(), PpoOptions(advantages=kind, whiten=False)).advantages[PLAN] for kind in ("joint", "split")]
    torch.testing.assert_close(*plain)
    decayed = [
        estimated(experience(), PpoOptions(advantages=kind, whiten=False, decay=0.9)).advantages[PLAN] for kind in ("joint", "split")
    ]
    assert (decayed[0] - decayed[1]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["joint", "split"])
def test_missing_rewards_are_left_out_and_pruned_pictures_count_as_zero(kind: Any) -> None:
    targets = estimated(experience(), PpoOptions(advantages=kind, whiten=False))
    assert targets.advantages[PLAN][4].eq(0).all()
    assert targets.returns[PLAN][4].isnan().all()
    unknown = [PLACE.index(s) for s in range(12) if TOTALS.flatten()[s].isnan()]
    assert targets.advantages[IMAGE][unknown].eq(0).all()
    assert targets.returns[IMAGE][unknown].isnan().all()
    assert targets.returns[PLAN][PRUNED, : LENGTHS[PRUNED]].tolist() == pytest.approx([0.0] * LENGTHS[PRUNED])
    assert targets.returns[PLAN][2, 0].item() == pytest.approx(0.5)  # the mean of what is known


def test_a_step_in_which_nothing_is_known_or_drawn() -> None:
    nothing = experience(rewards=torch.full_like(TOTALS, NAN))
    targets = estimated(nothing, PpoOptions())
    assert all(a.eq(0).all() for a in targets.advantages.values())
    assert all(r.isnan().all() for r in targets.returns.values())
    empty = {IMAGE: torch.zeros(0, 0, dtype=torch.float64)}
    seen = experience()
    assert seen.values is not None
    bare = replace(
        seen,
        rewards=torch.zeros_like(TOTALS),
        place=torch.zeros(0, dtype=torch.long),
        masks=dict(seen.masks) | {IMAGE: torch.zeros(0, 0, dtype=torch.bool)},
        old=dict(seen.old) | empty,
        values=dict(seen.values) | empty,
    )
    targets = estimated(bare, PpoOptions(whiten=False))
    assert targets.advantages[IMAGE].shape == (0, 0)
    torch.testing.assert_close(targets.advantages[PLAN], torch.where(seen.masks[PLAN], -seen.values[PLAN], 0.0))


def test_a_process_without_samples_takes_part_in_every_sum() -> None:
    """All its groups were left out. The other processes' advantages are the same as without it."""
    options = PpoOptions(reward_kl=0.1, reward_kl_target=1.0)
    sent: dict[str, list[torch.Size]] = {"some": [], "none": []}
    nothing = {name: torch.zeros(0, 0, dtype=torch.float64) for name in (PLAN, IMAGE)}
    masks = {name: x.bool() for name, x in nothing.items()}
    empty = Experience(torch.zeros(0, 2, 2), torch.zeros(0, dtype=torch.long), masks, nothing, nothing, nothing)
    for name, seen in (("some", experience()), ("none", empty)):

        def total(sums: Tensor, name: str = name) -> Tensor:
            sent[name].append(sums.shape)
            assert name == "some" or not sums.any()
            return sums

        targets = Ppo(options).estimate(seen, ValueHead(2, 0), total)
    assert sent["some"] == sent["none"]
    assert all(a.shape == (0, 0) for a in targets.advantages.values())


def test_truncated_chains_that_are_masked_leave_their_pictures() -> None:
    seen = experience()
    mask = seen.masks[PLAN].clone()
    mask[0] = False
    targets = estimated(replace(seen, masks={**seen.masks, PLAN: mask}), PpoOptions(whiten=False))
    assert targets.advantages[PLAN][0].eq(0).all()
    assert targets.returns[PLAN][0].isnan().all()
    assert targets.returns[IMAGE][0].tolist() == pytest.approx([0.2] * 4)


def test_the_penalty_follows_its_target() -> None:
    """arXiv 1909.08593, section 2.2: the weight of the next step. This step's weight is reported and used."""
    seen = experience()
    assert seen.reference is not None
    apart = {name: torch.where(m, seen.old[name] - seen.reference[name], 0.0).sum().item() / len(m) for name, m in seen.masks.items()}
    nats = sum(apart.values())
    assert abs(nats) > 0.05
    for target, share in ((1000.0, -0.2), (abs(nats) / 1.05 if nats > 0 else 1000.0, 0.05 if nats > 0 else -0.2)):
        head = ValueHead(2, 0)
        statistics = estimated(seen, PpoOptions(reward_kl=0.5, reward_kl_target=target), head).statistics
        assert statistics["reward_kl"][0].item() == pytest.approx(nats)
        assert statistics["reward_kl_weight"][0].item() == 0.5
        assert head.adapted.item() == pytest.approx(1 + 0.1 * share)
    fixed = ValueHead(2, 0)
    estimated(seen, PpoOptions(reward_kl=0.5), fixed)
    assert fixed.adapted.item() == 1


# -- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 0}, "discount"),
        ({"discount": 1.1}, "discount"),
        ({"decay": -0.1}, "decay"),
        ({"advantages": "both"}, "advantages"),
        ({"reward_kl_target": 1.0}, "reward_kl"),
        ({"reward_kl": 0.1, "reward_kl_target": 0}, "reward_kl_target"),
        ({"value_learning_rate": 0}, "value_learning_rate"),
        ({"value_clip": 0}, "value_clip"),
        ({"value_warmup": -1}, "value_warmup"),
        ({"ratio": "sequence"}, "ratio"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_component(Registry(), "algorithm", ComponentConfig.model_validate({"name": "ppo", **options}))


def test_it_is_registered_and_needs_no_group() -> None:
    found = make_component(Registry(), "algorithm", ComponentConfig.model_validate({"name": "ppo", "advantages": "split"}))
    assert isinstance(found, ActorCritic)
    advantages = found.advantages(torch.tensor([[[0.5]], [[NAN]]]))
    assert advantages.plan.tolist() == [[0.5], [0.0]]
    assert advantages.image.tolist() == [[[0.5]], [[0.0]]]
