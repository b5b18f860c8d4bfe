"""What an update computes: micro-batches of like length, and log-probabilities only where they are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_update import Recorded, config, near, outputs, record
from torch import Tensor

from gotr1_core.batch import split_batch
from gotr1_core.config.models import SegmentConfig
from gotr1_core.protocols import Estimates, Experience
from gotr1_core.samples import IMAGE, PLAN, SegmentName
from gotr1_rl.grpo import Grpo, GrpoOptions


@pytest.fixture
def recorded(policy: Any, letters_judge: Any) -> Recorded:
    return record(policy, letters_judge)


class Passes:
    """Notes the passes through a module: their segments, and whether they have a gradient."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seen: list[tuple[str, bool]] = []
        module.register_forward_pre_hook(lambda _, given: self.seen.append(("+".join(sorted(given[0])), torch.is_grad_enabled())))


def segments_with(plan: float, image: float) -> Mapping[SegmentName, SegmentConfig]:
    return {PLAN: SegmentConfig(kl=plan), IMAGE: SegmentConfig(kl=image)}


# -- like lengths -----------------------------------------------------------------------------------------------------------


def test_micro_batches_are_of_like_length_and_of_about_equal_size(recorded: Recorded) -> None:
    """Ten plans of lengths that alternate, in micro-batches of at most four: 4, 3 and 3, not 4, 4 and 2."""
    plans, batch = recorded.batch.plans, recorded.batch
    mask = torch.zeros(16, 40, dtype=torch.bool)
    for row in range(16):
        mask[row, : (8, 40, 9, 41)[row // 4] - row % 2] = True
    batch = replace(batch, plans=replace(plans, tensors={**plans.tensors, "mask": mask, "prompt_length": torch.ones(16).long()}))
    advantages = Grpo(GrpoOptions()).advantages(batch.rewards)
    advantages.plan.fill_(0)
    advantages.image.fill_(0)
    advantages.plan.flatten()[[0, 1, 4, 5, 6, 8, 9, 12, 13, 14]] = 1.0
    rows = [m.rows[PLAN].tolist() for m in split_batch(batch, advantages, {PLAN: SegmentConfig()}, config(micro_batch=4))]
    assert rows == [[12, 13, 14, 4], [5, 6, 8], [9, 0, 1]]  # by the mean length of their group, the longest first


def test_each_row_of_a_micro_batch_has_its_own_advantage_and_picture(recorded: Recorded) -> None:
    batch = recorded.batch
    assert batch.images is not None
    advantages = Grpo(GrpoOptions()).advantages(batch.rewards)
    found = split_batch(batch, advantages, segments_with(0.1, 0.1), config(micro_batch=3))
    assert sorted(torch.cat([m.rows[PLAN] for m in found]).tolist()) == list(range(16))
    assert sorted(torch.cat([m.rows[IMAGE] for m in found if IMAGE in m.rows]).tolist()) == list(range(len(batch.images)))
    for m in found:
        assert torch.equal(m.advantages[PLAN], advantages.plan.flatten()[m.rows[PLAN]])
        assert torch.equal(m.segments[PLAN].tensors["tokens"], batch.plans.tensors["tokens"][m.rows[PLAN]])
        if IMAGE in m.rows:
            assert torch.equal(m.advantages[IMAGE], advantages.image.flatten()[batch.place[m.rows[IMAGE]]])
            parents = m.rows[PLAN][m.segments[IMAGE].tensors["parent"]]
            assert torch.equal(parents, batch.images.tensors["parent"][m.rows[IMAGE]])


# -- passes -----------------------------------------------------------------------------------------------------------------


def test_without_a_divergence_there_is_one_pass_for_each_micro_batch(recorded: Recorded) -> None:
    passes = Passes(recorded.policy.module)
    recorded.update(recorded.learner(), config(micro_batch=8))
    assert passes.seen == [("image+plan", True)] * 2


def test_old_log_probabilities_need_no_pass_of_their_own(recorded: Recorded) -> None:
    """They come from the passes of the first update, during which nothing has moved yet."""
    passes = Passes(recorded.policy.module)
    recorded.update(recorded.learner(rate=0.02), config(micro_batch=8, updates=3))
    assert passes.seen == [("image+plan", True)] * 6


def test_ratios_compare_with_the_policy_before_the_first_update(recorded: Recorded) -> None:
    masks = [recorded.batch.plans.tensors["mask"], recorded.batch.images.tensors["mask"]] if recorded.batch.images else []
    learner = recorded.learner(rate=0.02)
    before = outputs(recorded)
    recorded.update(learner, config(micro_batch=4))
    after = outputs(recorded)
    twice = recorded.update(recorded.learner(rate=0.02), config(micro_batch=4, updates=2))
    for name, old, new, mask in zip((PLAN, IMAGE), before, after, masks, strict=True):
        expected = (1 + (new - old)[mask].exp().mean().item()) / 2  # 1 in the first update
        assert abs(expected - 1) > 1e-4
        assert twice[f"{name}.ratio"] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("plan", "image", "expected"), [(0.1, 0, "plan"), (0, 0.1, "image"), (0.1, 0.1, "image+plan")])
def test_the_reference_computes_the_segments_that_use_it(recorded: Recorded, plan: float, image: float, expected: str) -> None:
    passes = Passes(recorded.policy.module)
    found = recorded.update(recorded.learner(segments_with(plan, image)), config(micro_batch=8))
    assert passes.seen == [(expected, False)] * 2 + [("image+plan", True)] * 2
    assert {name for name in found if name.endswith(".kl")} == {f"{name}.kl" for name in expected.split("+")}


@pytest.mark.parametrize(("used", "both"), [((1.0, 0), (1.0, 1e-30)), ((0, 1.0), (1e-30, 1.0))], ids=["plan", "image"])
def test_one_segment_of_the_reference_changes_the_update_by_rounding(recorded: Recorded, used: Any, both: Any) -> None:
    """The pass of both segments is the one that a coefficient of 1e-30 for the other segment asks for."""
    moved = []
    for plan, image in (used, both):
        learner = recorded.learner(segments_with(plan, image), rate=0.05)
        recorded.update(learner, config(micro_batch=4, updates=3))
        moved.append(recorded.moved())
    near(*moved, share=1e-3)  # the second and third update magnify rounding


# -- algorithms that look at the whole step ---------------------------------------------------------------------------------


class Estimator(Grpo):
    """GRPO whose advantages are estimated, from an experience that it keeps."""

    def __init__(self, *, needs_reference: bool) -> None:
        super().__init__(GrpoOptions())
        self.needs_reference = needs_reference
        self.experience: Experience | None = None

    def estimate(self, seen: Experience, critic: Any, total: Any) -> Estimates:
        self.experience = seen
        found = self.advantages(seen.rewards)
        by_row: dict[SegmentName, Tensor] = {PLAN: found.plan.flatten(), IMAGE: found.image.flatten()[seen.place]}
        return Estimates({name: by_row[name] for name in seen.masks})


@pytest.mark.parametrize("needs_reference", [False, True])
def test_an_estimator_sees_the_batch_in_its_order(recorded: Recorded, needs_reference: bool) -> None:
    expected = outputs(recorded)
    plain = recorded.learner(segments_with(0.1, 0))
    recorded.update(plain, config(micro_batch=16))
    moved = recorded.moved()
    estimator = Estimator(needs_reference=needs_reference)
    found = recorded.update(recorded.learner(segments_with(0.1, 0)), config(micro_batch=3), algorithm=estimator)
    near(moved, recorded.moved())
    assert estimator.experience is not None
    for name, log_prob in zip((PLAN, IMAGE), expected, strict=True):
        mask = estimator.experience.masks[name]
        assert (estimator.experience.old[name] - log_prob)[mask].abs().max() < 1e-5
    assert (estimator.experience.reference is not None) == needs_reference
    if estimator.experience.reference is not None:
        assert estimator.experience.reference.keys() == {PLAN, IMAGE}
    assert ("image.kl" in found) == needs_reference
