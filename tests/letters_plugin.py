"""A plugin for the tests of several processes: the enumerable policy as planner and renderer, and a judge that fails in one process."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gotr1_core.errors import Gotr1Error
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_core.samples import PLAN, Sample, SegmentName
from gotr1_testing.enumerable import TinyPolicy


class Letters(TinyPolicy):
    """Chains of up to two letters and pictures of two pixels, in float64."""

    def __init__(self, options: None, device: Any = "cpu") -> None:
        del options, device
        super().__init__()


class Failing:
    """Scores 0.5. Raises an error in the process that GOTR1_TEST_FAIL names (``2 bug`` or ``2 known``)."""

    rewards: Mapping[str, SegmentName] = {"same": PLAN}

    def __init__(self, options: None) -> None:
        del options

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        process, _, how = os.environ.get("GOTR1_TEST_FAIL", "").partition(" ")
        if process == str(int(os.environ.get("RANK", "0")) + 1):
            raise Gotr1Error("the judge is asleep", hint="wake it") if how == "known" else KeyError("nobody expects it")
        return {"same": [0.5] * len(samples)}


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("planner", "letters", f"{__name__}:Letters")
    yield Component("renderer", "letters", f"{__name__}:Letters")
    yield Component("judge", "failing", f"{__name__}:Failing")
