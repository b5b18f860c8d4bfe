"""What a check is and what it finds. Nothing here knows of pytest: the same checks run in a test and in ``gotr1 check``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Subject = TypeVar("Subject")


class NotRun(Exception):
    """A check that says nothing about this component, and why: it has nothing of the kind, or is too large."""


@dataclass(frozen=True)
class Measured:
    """A number beside its limit: at most the limit, or with ``at_least`` no less than it. NaN is within no limit."""

    value: float
    limit: float
    note: str = ""
    at_least: bool = False

    @property
    def within(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Finding:
    """What a check found. ``passed`` is None where it could not be run; then ``note`` says why, and the numbers are NaN."""

    name: str
    passed: bool | None
    measured: float
    limit: float
    note: str
    at_least: bool = False

    def __str__(self) -> str:
        if self.passed is None:
            return f"{self.name}: not run: {self.note}"
        sign = ">=" if self.at_least else "<="
        return f"{self.name}: {self.measured:.3g}, to be {sign} {self.limit:.3g}. {self.note}"


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One thing that must hold of a component.

    ``shows`` is the sentence that it stands for. ``changes``: it trains the component, puts adapters into it or the like, so that no
    other check may get the same one.
    """

    name: str
    shows: str
    measure: Callable[[Subject], Measured]
    changes: bool = False

    def run(self, subject: Subject) -> Finding:
        """Measures. What the component itself raises is not caught."""
        nan = float("nan")
        try:
            found = self.measure(subject)
        except NotRun as why:
            return Finding(self.name, None, nan, nan, str(why))
        return Finding(self.name, found.within, found.value, found.limit, found.note, found.at_least)


def worst(found: list[Measured]) -> Measured:
    """The one that is closest to its limit or furthest beyond it; all of them have upper limits."""

    def badness(one: Measured) -> float:
        if one.value != one.value:
            return float("inf")
        return one.value / one.limit if one.limit else (float("inf") if one.value else 0.0)

    return max(found, key=badness)
