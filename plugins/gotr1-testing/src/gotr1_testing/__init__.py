"""The conformance suite: what must hold of every planner, renderer, judge and algorithm, as tests to subclass and as `gotr1 check`.

::

    from gotr1_testing import PlannerContract

    class TestMine(PlannerContract):
        @pytest.fixture
        def planner(self):
            return MyPlanner(MyOptions(model="tests/tiny"))

The checks are plain objects, :class:`Check`, that know nothing of pytest. See docs/conformance.md for what each shows and why its tolerance
is what it is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gotr1_testing.algorithms import ALGORITHM as ALGORITHM
    from gotr1_testing.contracts import AlgorithmContract as AlgorithmContract
    from gotr1_testing.contracts import JudgeContract as JudgeContract
    from gotr1_testing.contracts import PlannerContract as PlannerContract
    from gotr1_testing.contracts import RendererContract as RendererContract
    from gotr1_testing.enumerable import TinyPolicy as TinyPolicy
    from gotr1_testing.finding import Check as Check
    from gotr1_testing.finding import Finding as Finding
    from gotr1_testing.finding import Measured as Measured
    from gotr1_testing.finding import NotRun as NotRun
    from gotr1_testing.judges import JUDGE as JUDGE
    from gotr1_testing.judges import Court as Court
    from gotr1_testing.policies import PLANNER as PLANNER
    from gotr1_testing.policies import RENDERER as RENDERER
    from gotr1_testing.reliability import RELIABILITY as RELIABILITY
    from gotr1_testing.subject import Case as Case
    from gotr1_testing.subject import Subject as Subject

_HOME = {
    "algorithms": ("ALGORITHM",),
    "contracts": ("AlgorithmContract", "JudgeContract", "PlannerContract", "RendererContract"),
    "enumerable": ("TinyPolicy",),
    "finding": ("Check", "Finding", "Measured", "NotRun"),
    "judges": ("JUDGE", "Court"),
    "policies": ("PLANNER", "RENDERER"),
    "reliability": ("RELIABILITY",),
    "subject": ("Case", "Subject"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
