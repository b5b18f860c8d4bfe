"""The checks as pytest classes. Subclass one and give it a fixture: each check is then a test. Only this module imports pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gotr1_core.plugins import Registry
from gotr1_core.protocols import Benchmark, Planner, PromptSource, Renderer, RewardJudge, RLAlgorithm
from gotr1_core.samples import IMAGE, PLAN, Sample
from gotr1_testing.algorithms import ALGORITHM
from gotr1_testing.check import Check
from gotr1_testing.judges import JUDGE, JudgeSubject, shape_samples
from gotr1_testing.policies import PLANNER, RENDERER
from gotr1_testing.presets import PRESET, PresetSubject
from gotr1_testing.sources import BENCHMARK, SOURCE
from gotr1_testing.subject import Case, Subject


def _parametrize(checks: Sequence[Check[Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", [pytest.param(check, id=check.name) for check in checks])


def _run_as_test(check: Check[Any], subject: Any) -> None:
    """Runs a check as a test. A check that does not apply is skipped with its reason."""
    result = check.run(subject)
    if result.passed is None:
        pytest.skip(result.note)
    assert result.passed, f"{result}\n{check.shows}"


class PlannerContract:
    """What every planner must do. Give the fixture ``planner``, a new one for each test: checks train it and add adapters."""

    case: ClassVar[Case] = Case()

    @pytest.fixture
    def planner(self) -> Planner:
        """The planner; override this."""
        raise NotImplementedError("override the fixture `planner`")

    @pytest.fixture
    def load(self) -> Callable[[Path], Planner] | None:
        """Makes the planner from a folder that its ``save`` wrote; override this if it has an option for that."""
        return None

    def test_it_is_a_planner(self, planner: Planner) -> None:
        """It has the methods of the protocol."""
        assert isinstance(planner, Planner)

    @_parametrize(PLANNER)
    def test_planner(self, planner: Planner, load: Callable[[Path], Planner] | None, check: Check[Subject]) -> None:
        """It passes the check."""
        _run_as_test(check, Subject(planner, PLAN, self.case, load))


class RendererContract:
    """What every renderer must do. Give the fixture ``renderer``, a new one for each test."""

    case: ClassVar[Case] = Case()

    @pytest.fixture
    def renderer(self) -> Renderer:
        """The renderer; override this."""
        raise NotImplementedError("override the fixture `renderer`")

    @pytest.fixture
    def load(self) -> Callable[[Path], Renderer] | None:
        """Makes the renderer from a folder that its ``save`` wrote; override this if it has an option for that."""
        return None

    def test_it_is_a_renderer(self, renderer: Renderer) -> None:
        """It has the methods of the protocol."""
        assert isinstance(renderer, Renderer)

    @_parametrize(RENDERER)
    def test_renderer(self, renderer: Renderer, load: Callable[[Path], Renderer] | None, check: Check[Subject]) -> None:
        """It passes the check."""
        _run_as_test(check, Subject(renderer, IMAGE, self.case, load))


class JudgeContract:
    """What every judge must do. Give the fixture ``judge``, and override the others if their samples do not suit it."""

    @pytest.fixture
    def judge(self) -> RewardJudge:
        """The judge; override this."""
        raise NotImplementedError("override the fixture `judge`")

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        """The samples that it scores."""
        return shape_samples()

    @pytest.fixture
    def unscorable(self) -> Mapping[str, Sequence[Sample]]:
        """By reward, samples whose score must be NaN. Samples without a picture need not be given."""
        return {}

    def test_it_is_a_judge(self, judge: RewardJudge) -> None:
        """It has the methods of the protocol."""
        assert isinstance(judge, RewardJudge)

    @_parametrize(JUDGE)
    def test_judge(
        self, judge: RewardJudge, samples: Sequence[Sample], unscorable: Mapping[str, Sequence[Sample]], check: Check[JudgeSubject]
    ) -> None:
        """It passes the check."""
        _run_as_test(check, JudgeSubject(judge, samples, unscorable))


class AlgorithmContract:
    """What every algorithm must do. Give the fixture ``algorithm``, a new one for each test."""

    @pytest.fixture
    def algorithm(self) -> RLAlgorithm:
        """The algorithm; override this."""
        raise NotImplementedError("override the fixture `algorithm`")

    def test_it_is_an_algorithm(self, algorithm: RLAlgorithm) -> None:
        """It has the methods of the protocol."""
        assert isinstance(algorithm, RLAlgorithm)

    @_parametrize(ALGORITHM)
    def test_algorithm(self, algorithm: RLAlgorithm, check: Check[RLAlgorithm]) -> None:
        """It passes the check."""
        _run_as_test(check, algorithm)


class SourceContract:
    """What every prompt source must do. Give the fixture ``source``."""

    @pytest.fixture
    def source(self) -> PromptSource:
        """The source; override this."""
        raise NotImplementedError("override the fixture `source`")

    def test_it_is_a_source(self, source: PromptSource) -> None:
        """It has the methods of the protocol."""
        assert isinstance(source, PromptSource)

    @_parametrize(SOURCE)
    def test_source(self, source: PromptSource, check: Check[PromptSource]) -> None:
        """It passes the check."""
        _run_as_test(check, source)


class BenchmarkContract:
    """What every benchmark must do. Give the fixture ``benchmark``."""

    @pytest.fixture
    def benchmark(self) -> Benchmark:
        """The benchmark; override this."""
        raise NotImplementedError("override the fixture `benchmark`")

    def test_it_is_a_benchmark(self, benchmark: Benchmark) -> None:
        """It has the methods of the protocol."""
        assert isinstance(benchmark, Benchmark)

    @_parametrize(BENCHMARK)
    def test_benchmark(self, benchmark: Benchmark, check: Check[Benchmark]) -> None:
        """It passes the check."""
        _run_as_test(check, benchmark)


class PresetContract:
    """What every preset must do. Give the fixture ``preset``, the name under which it is registered."""

    @pytest.fixture
    def preset(self) -> str:
        """The preset's name; override this."""
        raise NotImplementedError("override the fixture `preset`")

    @_parametrize(PRESET)
    def test_preset(self, preset: str, check: Check[PresetSubject]) -> None:
        """It passes the check."""
        _run_as_test(check, PresetSubject(preset, Registry()))
