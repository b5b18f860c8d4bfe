"""Held-out scores: compared by prompt, stored as JSON, and their means. test_intervals.py has the intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from gotr1_core.chain import parse
from gotr1_core.engine.intervals import Estimate, estimate_change
from gotr1_core.evaluation import REWARD, HeldOut, change_label, columns, measured, paired, summary
from gotr1_core.samples import PLAN, Prompt, Sample, SegmentName

NAN = math.nan


def change(before: Sequence[float], after: Sequence[float]) -> Estimate:
    prompts = [(str(i), "") for i in range(len(before))]
    return paired(HeldOut(prompts, {"x": before}), HeldOut(prompts, {"x": after}), "x")


def test_pairs_are_compared_prompt_by_prompt() -> None:
    found = change([0.0, 0.5, 1.0, 0.2], [0.1, 0.6, 1.1, 0.4])
    assert found.mean == pytest.approx(0.125)
    assert 0.099 < found.low < found.high < 0.201  # the prompts differ by more among themselves, which does not count
    assert change([0, 0, 1], [1, 0, 1]).mean == pytest.approx(1 / 3)  # after - before


def test_a_pair_needs_both() -> None:
    assert change([0.0, NAN, 0.5, 0.0], [1.0, 1.0, NAN, 0.5]) == estimate_change([0.0, 0.0], [1.0, 0.5])


def test_pairs_are_of_one_prompt_and_never_of_one_place() -> None:
    """Other prompts, another order, a prompt that is there twice: only what both have is compared, its first with its first."""
    before = HeldOut([("1", "cat"), ("2", "dog"), ("3", "owl"), ("1", "cat")], {"pi": [0.1, 0.2, 0.3, 0.4]})
    after = HeldOut([("3", "owl"), ("1", "cat"), ("2", "a dog"), ("1", "cat"), ("1", "cat")], {"pi": [0.5, 0.2, 0.9, 0.8, 0.7]})
    found = paired(before, after, "pi")
    assert (found.count, found.mean) == (3, pytest.approx((0.2 + 0.1 + 0.4) / 3))
    assert change_label(before, after) == "change of the 3 prompts in both"
    assert change_label(before, before) == "change"
    nothing = paired(before, HeldOut([("1", "dog")], {"pi": [1.0]}), "pi")
    assert (nothing.count, math.isnan(nothing.mean)) == (0, True)


def test_held_out_scores_go_through_json() -> None:
    scores = HeldOut([("1", "cat"), ("", "dog")], {"reward": [0.5, 0.25], "pi": [0.5, NAN]})
    again = HeldOut.from_json(json.loads(json.dumps(scores.as_json())))
    assert (again.prompts, list(again), again["reward"]) == (scores.prompts, ["reward", "pi"], [0.5, 0.25])
    assert math.isnan(again["pi"][1])
    with pytest.raises(ValueError, match="one number per prompt"):
        HeldOut.from_json({"prompts": [["1", "cat"]], "pi": [1.0, 2.0]})


class Both:
    """A benchmark and a judge, which both have the score ``x``."""

    rewards: Mapping[str, SegmentName] = {"x": PLAN}

    def prompts(self, count: int | None) -> list[Prompt]:
        return []

    def measure(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        return {"x": [0.1] * len(samples)}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        return {"x": [0.2] * len(samples)}


def test_scores_of_a_benchmark_and_of_judges_become_those_of_samples() -> None:
    """A name that is taken gets the judge's label. A batch without a finite sample is not measured."""
    lost = replace(sample(NAN), not_finite=PLAN)
    first, second = measured(Both(), {"one": Both()}, [sample(0.0), lost])
    assert first.scores == {"x": 0.1, "one.x": 0.2}
    assert all(math.isnan(score) for score in second.scores.values())
    assert [each.scores for each in measured(Both(), {"one": Both()}, [lost, lost])] == [{}, {}]


def sample(reward: float, **scores: float) -> Sample:
    return Sample(Prompt("a circle"), parse(""), None, scores=scores, reward=reward)


def test_columns_and_their_means() -> None:
    samples = [sample(0.5, pi=1.0, ri=NAN), sample(NAN, pi=0.5, ri=0.25)]
    found = columns(samples)
    assert list(found) == [REWARD, "pi", "ri"]
    assert found["pi"] == [1.0, 0.5]
    assert summary(samples) == {REWARD: 0.5, "pi": 0.75, "ri": 0.25}
