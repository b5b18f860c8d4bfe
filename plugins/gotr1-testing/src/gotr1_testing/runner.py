"""Runs the checks of a component of any kind. Each check gets a component that no other check has changed."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gotr1_core.engine.out_of_memory import is_out_of_memory
from gotr1_core.errors import UsageError, nearest, one_line
from gotr1_core.hookspecs import Kind
from gotr1_core.protocols import RewardJudge
from gotr1_core.samples import IMAGE, PLAN, Sample
from gotr1_testing.algorithms import ALGORITHM
from gotr1_testing.check import Check, CheckResult
from gotr1_testing.judges import JUDGE, JudgeSubject
from gotr1_testing.policies import PLANNER, RENDERER
from gotr1_testing.presets import PRESET
from gotr1_testing.reliability import RELIABILITY
from gotr1_testing.sources import BENCHMARK, SOURCE
from gotr1_testing.subject import Case, Subject

CHECKS: dict[Kind, Sequence[Check[Any]]] = {
    "planner": PLANNER,
    "renderer": RENDERER,
    "judge": (*JUDGE, *RELIABILITY),
    "algorithm": ALGORITHM,
    "source": SOURCE,
    "benchmark": BENCHMARK,
    "preset": PRESET,
}

SMALL_COMPONENT = 1_000_000
"""Parameters: 4 MB in float32."""


def checks_of(kind: Kind, only: Sequence[str] = ()) -> list[Check[Any]]:
    """The checks of a kind, or only those with the given names.

    Raises:
        UsageError: no check has such a name.
    """
    names = [check.name for check in CHECKS[kind]]
    for name in only:
        if name not in names:
            raise UsageError(f"there is no check {name!r} of kind {kind}", hint=f"{nearest(name, names)}checks: {', '.join(names)}")
    return [check for check in CHECKS[kind] if not only or check.name in only]


def subject_of(
    kind: Kind,
    component: Any,
    case: Case,
    *,
    reference: RewardJudge | None = None,
    compared: Sequence[Sample] = (),
    load: Callable[[Path], Any] | None = None,
) -> Any:
    """Wraps a component as the checks of its kind expect it: :class:`JudgeSubject`, :class:`Subject`, or the component itself."""
    if kind == "judge":
        return JudgeSubject(component, reference=reference, compared=compared)
    if kind in ("planner", "renderer"):
        return Subject(component, PLAN if kind == "planner" else IMAGE, case, load)
    return component


def run_checks(
    kind: Kind,
    make: Callable[[], Any],
    case: Case | None = None,
    only: Sequence[str] = (),
    *,
    reference: RewardJudge | None = None,
    compared: Sequence[Sample] = (),
    load: Callable[[Path], Any] | None = None,
) -> Iterator[CheckResult]:
    """Runs the checks of a kind one by one, and yields each result.

    An exception of the component is a failed check, and its note is the exception. If memory runs out, the check counts as not run.

    Args:
        kind: of the component, such as ``planner``.
        make: makes a new component, or a :class:`PresetSubject`. Checks that change nothing share one.
        case: what a planner or renderer is checked on.
        only: names of checks; all checks of the kind if empty.
        reference: the judge that a judge is compared with.
        compared: the samples on which both are compared.
        load: makes a planner or renderer from a folder that its ``save`` wrote.
    """
    subject, large = None, False
    for check in checks_of(kind, only):
        if subject is None:
            if large:
                gc.collect()  # frees the component before it
            component = make()
            large = _is_large(kind, component)
            subject = subject_of(kind, component, case or Case(), reference=reference, compared=compared, load=load)
            del component
        try:
            yield check.run(subject)
        except Exception as error:
            note = one_line(error)
            passed = None if is_out_of_memory(error) else False
            yield CheckResult(check.name, passed, math.nan, math.nan, note)
            subject = None
        if check.changes or kind == "algorithm":  # cheap to make, and one with state would carry it from check to check
            subject = None


def _is_large(kind: Kind, component: Any) -> bool:
    """True if a component may hold much memory. To look for garbage takes a third of a second, more than a check of a small one."""
    if kind in ("judge", "preset"):
        return True
    module = getattr(component, "module", None)
    return module is not None and sum(p.numel() for p in module.parameters()) > SMALL_COMPONENT
