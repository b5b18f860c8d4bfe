"""engine.metrics"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from accelerate import Accelerator
from torch import Tensor

from gotr1_core.engine.collectives import gather_objects


@dataclass
class Clock:
    """Seconds of a step by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


@dataclass
class MetricSums:
    """Sums and weights of statistics, and their extremes; ``numbers`` puts those of all processes together."""

    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    largest: dict[str, float] = field(default_factory=dict)
    smallest: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        self.sums[name][0] += float(value)
        self.sums[name][1] += float(weight)

    def extend(self, statistics: Mapping[str, tuple[Tensor, Tensor]], prefix: str = "") -> None:
        for name, (value, weight) in statistics.items():
            self.add(prefix + name, value, weight)

    def extremes(self, values: Tensor, *, low: str | None = None, high: str | None = None) -> None:
        if values.numel() and low:
            self.smallest[low] = min(self.smallest.get(low, float("inf")), float(values.min()))
        if values.numel() and high:
            self.largest[high] = max(self.largest.get(high, -float("inf")), float(values.max()))

    def numbers(self, accelerator: Accelerator) -> dict[str, float]:
        """Means, and extremes, over all processes."""
        every = gather_objects(accelerator, (dict(self.sums), self.largest, self.smallest))
        total = MetricSums()
        for sums, largest, smallest in every:
            for name, (value, weight) in sums.items():
                total.add(name, value, weight)
            total.largest |= {k: max(v, total.largest.get(k, v)) for k, v in largest.items()}
            total.smallest |= {k: min(v, total.smallest.get(k, v)) for k, v in smallest.items()}
        return {name: value / weight for name, (value, weight) in total.sums.items() if weight} | total.largest | total.smallest
