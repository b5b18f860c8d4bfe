"""The algorithms pass the conformance suite, with the options that change their mathematics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch

from gotr1_core.batch import Batch
from gotr1_core.chain import parse
from gotr1_core.config.models import SegmentConfig
from gotr1_core.protocols import RLAlgorithm
from gotr1_core.samples import PLAN, Prompt, Sample
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_rl.ppo import Ppo, PpoOptions
from gotr1_rl.rloo import Rloo, RlooOptions
from gotr1_testing import AlgorithmContract
from gotr1_testing.enumerable import END, QUARTERS, all_groups, exact_sample
from gotr1_testing.exact import expected_gradient, update_gradient
from gotr1_testing.runner import checks_of

REWARDS = [[0.2, 0.1, 0.4], [1.0, 0.3, 0.0], [0.6, 0.2, 0.5]]


class TestGrpo(AlgorithmContract):
    @pytest.fixture(params=[{}, {"scale": False}, {"ratio": "sequence", "kl": "k2"}, {"advantages": "split"}], ids=str)
    def algorithm(self, request: Any) -> RLAlgorithm:
        return Grpo(GrpoOptions(**request.param))


class TestRloo(AlgorithmContract):
    @pytest.fixture(params=[{}, {"advantages": "split"}], ids=str)
    def algorithm(self, request: Any) -> RLAlgorithm:
        return Rloo(RlooOptions(**request.param))


class TestPpo(AlgorithmContract):
    @pytest.fixture(params=[{}, {"advantages": "split", "whiten": False}], ids=str)
    def algorithm(self, request: Any) -> RLAlgorithm:
        return Ppo(PpoOptions(**request.param))


@pytest.mark.parametrize(("kl", "direction"), [("k3", "KL(reference, policy)"), ("k2", "KL(policy, reference)")])
def test_the_divergences_directions_are_as_documented(kl: Any, direction: str) -> None:
    (check,) = checks_of("algorithm", ["kl-gradient"])
    found = check.run(Grpo(GrpoOptions(kl=kl)))
    assert found.passed
    assert direction in found.note


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("group", [2, 3])
def test_biases_of_length_are_the_known_ones(group: int, ends: bool) -> None:
    """A group's mean includes the sample itself, so GRPO's expected gradient is (G - 1) / G of the exact one. RLOO's mean leaves it out."""
    centred = expected_gradient(Grpo(GrpoOptions(scale=False)), group, ends=ends)
    assert centred.factor == pytest.approx((group - 1) / group, abs=1e-12)
    assert expected_gradient(Rloo(RlooOptions()), group, ends=ends).factor == pytest.approx(1, abs=1e-12)
    assert expected_gradient(Ppo(PpoOptions(whiten=False)), group, ends=ends).factor == pytest.approx(1, abs=1e-12)


# -- a whole update in plain Python -----------------------------------------------------------------------------------------

State = int | None  # the symbol before


def probabilities(state: State) -> list[float]:
    first, second = QUARTERS[True]
    return [n / 4 for n in (first if state is None else second[state])]


def actions(sequence: Sequence[int]) -> Iterator[tuple[State, int]]:
    """States and symbols of a chain. It is over after END."""
    yield None, sequence[0]
    if sequence[0] != END:
        yield sequence[0], sequence[1]


def by_formula(sequences: Sequence[Sequence[int]], size: int, *, scale: bool) -> tuple[dict[tuple[State, int], float], dict[str, float]]:
    """GRPO (arXiv 2402.03300, eq. 3 and section 4.1.2) on all groups, with DAPO's mean over tokens: the loss's derivatives by logit."""
    slopes: dict[tuple[State, int], float] = {}
    tokens, entropy = 0, 0.0
    for group in product(sequences, repeat=size):
        rewards = [REWARDS[a][b] for a, b in group]
        mean = sum(rewards) / size
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (size - 1))
        for sequence, reward in zip(group, rewards, strict=True):
            advantage = (reward - mean) / (std + 1e-6 if scale else 1.0)
            for state, chosen in actions(sequence):
                tokens += 1
                entropy -= sum(p * math.log(p) for p in probabilities(state))
                for symbol, p in enumerate(probabilities(state)):
                    slopes[state, symbol] = slopes.get((state, symbol), 0.0) - advantage * ((symbol == chosen) - p)
    return {key: total / tokens for key, total in slopes.items()}, {
        "plan.entropy": entropy / tokens,
        "plan.ratio": 1.0,
        "plan.clipped": 0.0,
    }


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_an_update_is_the_papers(size: int, scale: bool) -> None:
    """From rewards through advantages, loss and denominators to the gradient and its statistics, on every group of a perfect sample."""
    policy, plans = exact_sample(ends=True)
    rows = all_groups(plans, size).flatten()
    tokens = plans.tensors["tokens"]
    rewards = torch.tensor(REWARDS, dtype=torch.float64)[tokens[rows, 0], tokens[rows, 1]].view(-1, size, 1)
    empty = torch.zeros(0, dtype=torch.long)
    samples = tuple(Sample(Prompt(""), parse(""), None) for _ in rows)
    batch = Batch((Prompt(""),) * len(rewards), plans.rows(rows), None, empty, samples, rewards)
    found, statistics = update_gradient(Grpo(GrpoOptions(scale=scale)), policy, batch, {PLAN: SegmentConfig()})
    slopes, expected_statistics = by_formula(tokens.tolist(), size, scale=scale)
    weight = found["plan_head.weight"]  # features are one-hot states, so its entries are the logits
    for (state, symbol), slope in slopes.items():
        assert weight[symbol, 0 if state is None else state + 1].item() == pytest.approx(slope, rel=1e-9, abs=1e-12)
    for name, value in expected_statistics.items():
        assert statistics[name] == pytest.approx(value, rel=1e-12)
    assert max(map(abs, slopes.values())) > 0.01
