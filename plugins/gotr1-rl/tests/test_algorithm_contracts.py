"""The algorithms pass the conformance suite, with the options that change their mathematics."""

from __future__ import annotations

from typing import Any

import pytest

from gotr1_core.protocols import RLAlgorithm
from gotr1_core.testing import AlgorithmContract
from gotr1_core.testing.exact import expected
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_rl.ppo import Ppo, PpoOptions
from gotr1_rl.rloo import Rloo, RlooOptions


class TestGrpo(AlgorithmContract):
    @pytest.fixture(params=[{}, {"scale": False}, {"ratio": "sequence", "kl": "k2"}, {"credit": "split"}], ids=str)
    def algorithm(self, request: Any) -> RLAlgorithm:
        return Grpo(GrpoOptions(**request.param))


class TestRloo(AlgorithmContract):
    @pytest.fixture(params=[{}, {"credit": "split"}], ids=str)
    def algorithm(self, request: Any) -> RLAlgorithm:
        return Rloo(RlooOptions(**request.param))


class TestPpo(AlgorithmContract):
    @pytest.fixture(params=[{}, {"credit": "split", "whiten": False}], ids=str)
    def algorithm(self, request: Any) -> RLAlgorithm:
        return Ppo(PpoOptions(**request.param))


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("group", [2, 3])
def test_biases_of_length_are_the_known_ones(group: int, ends: bool) -> None:
    """A group's mean holds the sample itself, so GRPO's expected gradient is (G - 1) / G of the exact one; RLOO's leaves it out."""
    centred = expected(Grpo(GrpoOptions(scale=False)), group, ends=ends)
    assert centred.factor == pytest.approx((group - 1) / group, abs=1e-12)
    assert expected(Rloo(RlooOptions()), group, ends=ends).factor == pytest.approx(1, abs=1e-12)
    assert expected(Ppo(PpoOptions(whiten=False)), group, ends=ends).factor == pytest.approx(1, abs=1e-12)
