"""How many threads torch computes with on a CPU, so that a busy neighbour makes a run slower by its share and not by a multiple.

Between steps :class:`ThreadPolicy` looks how many cores other processes use, and leaves those to them. The number of threads changes
numbers by rounding: sums are split in other ways. ``threads=N`` in a config fixes it. See also :mod:`gotr1_core.engine.openmp`.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import torch

from gotr1_core.engine.openmp import is_set_by_user

FIRST_LOOK = 0.3
"""Seconds between the first two readings: a run may begin with a long evaluation."""
GRAIN = 0.5
"""Least seconds between two others. Counters of a system have a grain of 0.01 s for each core."""


class _Reading(NamedTuple):
    """A time, and the seconds of cores that all processes and this one have used until then."""

    at: float
    all: float
    own: float


class ThreadPolicy:
    """Chooses the number of torch's threads for what comes next.

    Args:
        fixed: this many, always. None: as many as there are cores that no other process uses, and at most as many as torch has now. It
            stays as it is if the user has set something of OpenMP, or if models run on a GPU.

    Other processes of the same run count as others. So N processes on a machine share its cores.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.limit = fixed or torch.get_num_threads()
        self.adapts = fixed is None and self.limit > 1 and not is_set_by_user() and not torch.cuda.is_available()
        torch.set_num_threads(self.limit)
        self._last = _read() if self.adapts else None
        if self.adapts:
            time.sleep(FIRST_LOOK)
            self.adjust(least=0.0)

    @property
    def threads(self) -> int:
        """The number of threads that torch has now."""
        return torch.get_num_threads()

    def adjust(self, least: float = GRAIN) -> None:
        """Sets the threads of what comes by what happened since the last call; not if that was less than ``least`` seconds ago."""
        if self._last is None:
            return
        now = _read()
        wall = now.at - self._last.at
        if wall < least:
            return
        others = max(0.0, (now.all - self._last.all) - (now.own - self._last.own)) / wall
        self._last = now
        torch.set_num_threads(min(self.limit, max(1, int(len(_cores()) - others + 0.5))))


def policy_in_words() -> str:
    """What decides the number of threads of a run here, for the doctor."""
    if is_set_by_user():
        return "as the environment says (OMP_…, GOMP_…, KMP_…)"
    return "fewer while other processes are busy; threads=N fixes them"


def _read() -> _Reading:
    import psutil

    cores = psutil.cpu_times(percpu=True)
    return _Reading(time.monotonic(), sum(_busy(cores[i]) for i in _cores() if i < len(cores)), time.process_time())


def _busy(core: object) -> float:
    """Seconds that a core was in use. A Linux kernel counts virtual machines (guest) as their user's, too."""
    names = ("user", "nice", "system", "irq", "softirq", "steal", "dpc", "interrupt")
    return sum(float(getattr(core, name, 0.0)) for name in names)


def _cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
