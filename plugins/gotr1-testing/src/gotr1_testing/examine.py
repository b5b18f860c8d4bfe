"""The checks of a component of any kind, each on a component that no other check has changed."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gotr1_core.engine.out_of_memory import is_out_of_memory
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.plugins import nearest, one_line
from gotr1_core.protocols import RewardJudge
from gotr1_core.samples import IMAGE, PLAN, Sample
from gotr1_testing.algorithms import ALGORITHM
from gotr1_testing.finding import Check, Finding
from gotr1_testing.judges import JUDGE, Court
from gotr1_testing.policies import PLANNER, RENDERER
from gotr1_testing.reliability import RELIABILITY
from gotr1_testing.subject import Case, Subject

CHECKS: dict[Kind, Sequence[Check[Any]]] = {
    "planner": PLANNER,
    "renderer": RENDERER,
    "judge": (*JUDGE, *RELIABILITY),
    "algorithm": ALGORITHM,
}


def checks_of(kind: Kind, only: Sequence[str] = ()) -> list[Check[Any]]:
    """The checks of a kind, or those of some names.

    Raises:
        UsageError: a kind that has none, a name that is none.
    """
    if kind not in CHECKS:
        raise UsageError(f"there are no checks of kind {kind}", hint=f"kinds: {', '.join(CHECKS)}")
    names = [check.name for check in CHECKS[kind]]
    for name in only:
        if name not in names:
            raise UsageError(f"there is no check {name!r} of kind {kind}", hint=f"{nearest(name, names)}checks: {', '.join(names)}")
    return [check for check in CHECKS[kind] if not only or check.name in only]


def subject_of(kind: Kind, component: Any, case: Case, reference: RewardJudge | None = None, compared: Sequence[Sample] = ()) -> Any:
    """What the checks of a kind are given for a component."""
    if kind == "judge":
        return Court(component, reference=reference, compared=compared)
    if kind == "algorithm":
        return component
    return Subject(component, PLAN if kind == "planner" else IMAGE, case)


def examine(
    kind: Kind,
    make: Callable[[], Any],
    case: Case | None = None,
    only: Sequence[str] = (),
    *,
    reference: RewardJudge | None = None,
    compared: Sequence[Sample] = (),
) -> Iterator[Finding]:
    """Runs the checks of a kind one by one; ``make`` gives a new component, which those that change nothing share.

    A judge is compared with the judge ``reference`` on the samples ``compared``.
    An exception of the component is a finding that failed, and says what it was; too little memory is a check that was not run.
    """
    subject = None
    for check in checks_of(kind, only):
        if subject is None:
            gc.collect()  # the one before it may be large
            subject = subject_of(kind, make(), case or Case(), reference, compared)
        try:
            yield check.run(subject)
        except Exception as error:
            shown = error.message if isinstance(error, Gotr1Error) else one_line(error)
            passed = None if is_out_of_memory(error) else False
            yield Finding(check.name, passed, math.nan, math.nan, shown)
            subject = None
        if check.changes:
            subject = None
