"""The conformance suite: checks of what every planner, renderer, judge, algorithm, source, benchmark and preset must do.

They run as tests of a subclass, and as the command ``gotr1 check``::

    from gotr1_testing import PlannerContract

    class TestMyPlanner(PlannerContract):
        @pytest.fixture
        def planner(self):
            return MyPlanner(MyOptions(model="tests/tiny"))

The checks are plain objects, :class:`Check`, and do not depend on pytest. docs/conformance.md says what each check shows and gives the
reason of its tolerance.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gotr1_testing.algorithms import ALGORITHM as ALGORITHM
    from gotr1_testing.check import Check as Check, CheckResult as CheckResult, Measured as Measured, NotRun as NotRun
    from gotr1_testing.contracts import (
        AlgorithmContract as AlgorithmContract,
        BenchmarkContract as BenchmarkContract,
        JudgeContract as JudgeContract,
        PlannerContract as PlannerContract,
        PresetContract as PresetContract,
        RendererContract as RendererContract,
        SourceContract as SourceContract,
    )
    from gotr1_testing.enumerable import TinyPolicy as TinyPolicy
    from gotr1_testing.judges import JUDGE as JUDGE, JudgeSubject as JudgeSubject
    from gotr1_testing.policies import PLANNER as PLANNER, RENDERER as RENDERER
    from gotr1_testing.presets import PRESET as PRESET, PresetSubject as PresetSubject
    from gotr1_testing.reliability import RELIABILITY as RELIABILITY
    from gotr1_testing.sources import BENCHMARK as BENCHMARK, SOURCE as SOURCE
    from gotr1_testing.subject import Case as Case, Subject as Subject

_NAMES = {
    "algorithms": ("ALGORITHM",),
    "check": ("Check", "CheckResult", "Measured", "NotRun"),
    "contracts": (
        *("AlgorithmContract", "BenchmarkContract", "JudgeContract", "PlannerContract", "PresetContract"),
        *("RendererContract", "SourceContract"),
    ),
    "enumerable": ("TinyPolicy",),
    "judges": ("JUDGE", "JudgeSubject"),
    "policies": ("PLANNER", "RENDERER"),
    "presets": ("PRESET", "PresetSubject"),
    "reliability": ("RELIABILITY",),
    "sources": ("BENCHMARK", "SOURCE"),
    "subject": ("Case", "Subject"),
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
