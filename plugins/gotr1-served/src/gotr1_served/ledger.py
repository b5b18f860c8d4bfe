"""What was asked and spent: requests, tokens and dollars, against a budget, for one process's part of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gotr1_core.engine.files import read_json, write_atomically

UNITS = ("requests", "tokens", "dollars")


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens that are read and written."""

    read: float = 0.0
    written: float = 0.0

    def cost(self, read: int, written: int) -> float:
        """Returns the dollars that tokens cost."""
        return (self.read * read + self.written * written) / 1e6


@dataclass
class Ledger:
    """Counts what a client spends. ``budget`` has the most of each of `UNITS`; a unit without an entry has no limit.

    ``spent`` includes what the same run spent before a resume, once `join` was called.
    """

    budget: Mapping[str, float] = field(default_factory=dict)
    prices: Prices = Prices()
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(UNITS, 0.0))
    facts: dict[str, Any] = field(default_factory=dict)
    _largest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(UNITS, 0.0))
    _under_way: int = 0
    _before: dict[str, float] = field(default_factory=lambda: dict.fromkeys(UNITS, 0.0))  # what is in files of processes that are no more
    _file: Path | None = None

    def join(self, folder: Path, name: str, process: int = 0, processes: int = 1) -> None:
        """Keeps the account in a run's folder from now on, and counts what the run has spent already against the budget.

        Args:
            folder: the run's.
            name: the component's name in the run.
            process, processes: number of this process, and how many there are. Each may spend an equal part of what is left.
        """
        now, self._file = dict(self.spent), folder / f"spent-{name}-{process}.json"
        rows = {path: read_json(path) for path in sorted(folder.glob(f"spent-{name}-*.json"))}
        own = {path: row for path, row in rows.items() if int(path.stem.rpartition("-")[2]) % processes == process}
        spent_here = _total(own.values())
        # Another process may have written its file already. Then this one's part is smaller, and the parts never exceed the budget.
        left = {unit: max(0.0, most - _total(rows.values())[unit]) for unit, most in self.budget.items()}
        self.budget = {unit: spent_here[unit] + amount / processes for unit, amount in left.items()}
        self._before = _total(row for path, row in own.items() if path != self._file)
        self.facts = {**next((row.get("facts", {}) for row in rows.values()), {})}
        self.spent = {unit: spent_here[unit] + now[unit] for unit in UNITS}
        self.save()

    def save(self) -> None:
        """Writes the account, if it is a run's."""
        if self._file is not None:
            spent = {unit: self.spent[unit] - self._before[unit] for unit in UNITS}
            write_atomically(self._file, json.dumps({**spent, "facts": self.facts}))

    def exhausted(self) -> str | None:
        """Returns which unit has no room for another request, or None. A request may cost as much as the dearest one so far."""
        for unit, most in self.budget.items():
            expected = 1.0 if unit == "requests" else (self._under_way + 1) * self._largest[unit]
            if self.spent[unit] + expected > most:
                return unit
        return None

    def sent(self) -> None:
        """A request is under way. It counts, whatever becomes of it."""
        self.spent["requests"] += 1
        self._under_way += 1

    def returned(self, read: int = 0, written: int = 0) -> None:
        """A request has ended, with so many tokens ``read`` and ``written`` as the server says."""
        self._under_way -= 1
        cost = {"tokens": float(read + written), "dollars": self.prices.cost(read, written)}
        for unit, amount in cost.items():
            self.spent[unit] += amount
            self._largest[unit] = max(self._largest[unit], amount)

    def shown(self) -> str:
        """Returns what was spent, as a text for people."""
        dollars = f", {self.spent['dollars']:.2f} dollars" if self.spent["dollars"] else ""
        return f"{self.spent['requests']:.0f} requests, {self.spent['tokens']:.0f} tokens{dollars}"


def _total(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What accounts have spent together, by unit."""
    kept = list(rows)
    return {unit: sum(float(row.get(unit, 0)) for row in kept) for unit in UNITS}
