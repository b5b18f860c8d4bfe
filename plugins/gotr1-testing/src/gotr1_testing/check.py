"""Defines a check and its result. Nothing here depends on pytest: the same checks run in a test and in ``gotr1 check``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gotr1_core.border.contract import ContractError

Subject = TypeVar("Subject")


class NotRun(Exception):
    """Raised by a check that does not apply to the component. The message says why, such as that the component is too large."""


@dataclass(frozen=True)
class Measured:
    """A number and its limit: an upper limit, or with ``at_least`` a lower one. NaN is within no limit."""

    value: float
    limit: float
    note: str = ""
    at_least: bool = False

    @property
    def within(self) -> bool:
        """True if the number is within its limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class CheckResult:
    """The result of a check. ``passed`` is None if the check was not run; then ``note`` says why, and the numbers are NaN."""

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
        return f"{self.name}: {self.measured:.3g}, must be {sign} {self.limit:.3g}. {self.note}"


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One thing that must hold of a component.

    Attributes:
        name: what ``gotr1 check --only`` takes.
        shows: a sentence that says what must hold.
        measure: measures a subject; raises :class:`NotRun` if the check does not apply to it.
        changes: the check changes the component, such as by training it or adding adapters. No other check may use the same one then.
    """

    name: str
    shows: str
    measure: Callable[[Subject], Measured]
    changes: bool = False

    def run(self, subject: Subject) -> CheckResult:
        """Measures the subject. What breaks the component's contract, or is raised in it, is a failed check."""
        nan = float("nan")
        try:
            measured = self.measure(subject)
        except NotRun as reason:
            return CheckResult(self.name, None, nan, nan, str(reason))
        except ContractError as error:
            return CheckResult(self.name, False, nan, nan, f"{error.message} ({error.hint})")
        return CheckResult(self.name, measured.within, measured.value, measured.limit, measured.note, measured.at_least)


def worst(measurements: list[Measured]) -> Measured:
    """The measurement with the largest ratio of value to limit. All of them must have upper limits."""

    def badness(measured: Measured) -> float:
        if measured.value != measured.value:
            return float("inf")
        return measured.value / measured.limit if measured.limit else (float("inf") if measured.value else 0.0)

    return max(measurements, key=badness)
