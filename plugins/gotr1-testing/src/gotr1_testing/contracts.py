"""The checks as pytest classes: subclass one, give it a fixture, and each check is a test. The only module here that imports pytest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from gotr1_core.protocols import Planner, Renderer, RewardJudge, RLAlgorithm
from gotr1_core.samples import IMAGE, PLAN, Sample
from gotr1_testing.algorithms import ALGORITHM
from gotr1_testing.finding import Check
from gotr1_testing.judges import JUDGE, Court, scenes
from gotr1_testing.policies import PLANNER, RENDERER
from gotr1_testing.subject import Case, Subject


def _each(checks: Sequence[Check[Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", [pytest.param(check, id=check.name) for check in checks])


def _hold(check: Check[Any], subject: Any) -> None:
    """Runs a check as a test: one that says nothing about the component is skipped, with its reason."""
    found = check.run(subject)
    if found.passed is None:
        pytest.skip(found.note)
    assert found.passed, f"{found}\n{check.shows}"


class PlannerContract:
    """What every planner must do. Give the fixture ``planner``: a new one for each test, as checks train it and put adapters into it."""

    case: ClassVar[Case] = Case()

    @pytest.fixture
    def planner(self) -> Planner:
        raise NotImplementedError("override the fixture `planner`")

    def test_it_is_a_planner(self, planner: Planner) -> None:
        assert isinstance(planner, Planner)

    @_each(PLANNER)
    def test_planner(self, planner: Planner, check: Check[Subject]) -> None:
        _hold(check, Subject(planner, PLAN, self.case))


class RendererContract:
    """What every renderer must do. Give the fixture ``renderer``: a new one for each test."""

    case: ClassVar[Case] = Case()

    @pytest.fixture
    def renderer(self) -> Renderer:
        raise NotImplementedError("override the fixture `renderer`")

    def test_it_is_a_renderer(self, renderer: Renderer) -> None:
        assert isinstance(renderer, Renderer)

    @_each(RENDERER)
    def test_renderer(self, renderer: Renderer, check: Check[Subject]) -> None:
        _hold(check, Subject(renderer, IMAGE, self.case))


class JudgeContract:
    """What every judge must do. Give the fixture ``judge``, and override the others where the samples do not suit it."""

    @pytest.fixture
    def judge(self) -> RewardJudge:
        raise NotImplementedError("override the fixture `judge`")

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        """What it scores."""
        return scenes()

    @pytest.fixture
    def unscorable(self) -> Mapping[str, Sequence[Sample]]:
        """By reward, samples that must be NaN; those without their picture need not be given."""
        return {}

    def test_it_is_a_judge(self, judge: RewardJudge) -> None:
        assert isinstance(judge, RewardJudge)

    @_each(JUDGE)
    def test_judge(
        self, judge: RewardJudge, samples: Sequence[Sample], unscorable: Mapping[str, Sequence[Sample]], check: Check[Court]
    ) -> None:
        _hold(check, Court(judge, samples, unscorable))


class AlgorithmContract:
    """What every algorithm must do. Give the fixture ``algorithm``: a new one for each test."""

    @pytest.fixture
    def algorithm(self) -> RLAlgorithm:
        raise NotImplementedError("override the fixture `algorithm`")

    def test_it_is_an_algorithm(self, algorithm: RLAlgorithm) -> None:
        assert isinstance(algorithm, RLAlgorithm)

    @_each(ALGORITHM)
    def test_algorithm(self, algorithm: RLAlgorithm, check: Check[RLAlgorithm]) -> None:
        _hold(check, algorithm)
