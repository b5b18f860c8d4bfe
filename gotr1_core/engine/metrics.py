"""Time by phase, and sums of metrics that can be added over micro-batches and processes."""

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
    """Measures how many seconds each phase of a step takes."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside the block to ``seconds[name]``."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


@dataclass
class MetricSums:
    """Sums and weights of metrics, and extremes (smallest and largest values). :meth:`reduce` combines all processes."""

    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    largest: dict[str, float] = field(default_factory=dict)
    smallest: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Adds a sum and its weight, scalars, to a metric, whose value is the ratio of both."""
        self.sums[name][0] += float(value)
        self.sums[name][1] += float(weight)

    def extend(self, statistics: Mapping[str, tuple[Tensor, Tensor]], prefix: str = "") -> None:
        """Adds ``(sum, weight)`` pairs of scalars by name."""
        for name, (value, weight) in statistics.items():
            self.add(prefix + name, value, weight)

    def add_extremes(self, values: Tensor, *, low: str | None = None, high: str | None = None) -> None:
        """Records the smallest of ``values`` (any shape) as metric ``low`` and the largest as ``high``; nothing if there are none."""
        if values.numel() and low:
            self.smallest[low] = min(self.smallest.get(low, float("inf")), float(values.min()))
        if values.numel() and high:
            self.largest[high] = max(self.largest.get(high, -float("inf")), float(values.max()))

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns means and extremes over all processes. Metrics of weight 0 are left out. Every process must call it."""
        by_process = gather_objects(accelerator, (dict(self.sums), self.largest, self.smallest))
        total = MetricSums()
        for sums, largest, smallest in by_process:
            for name, (value, weight) in sums.items():
                total.add(name, value, weight)
            total.largest |= {k: max(v, total.largest.get(k, v)) for k, v in largest.items()}
            total.smallest |= {k: min(v, total.smallest.get(k, v)) for k, v in smallest.items()}
        return {name: value / weight for name, (value, weight) in total.sums.items() if weight} | total.largest | total.smallest
