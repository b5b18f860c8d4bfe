"""A plugin for tests: a judge that gives random policies rewards, and a process that kills itself when GOTR1_TEST_KILL says so."""

import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gotr1_core.hookspecs import Component, hookimpl
from gotr1_core.runs import trainer_state
from gotr1_core.samples import IMAGE, PLAN, Sample, SegmentName

MOMENT = os.environ.get("GOTR1_TEST_KILL", "")


class Values:
    """``value`` depends on the chain, or on the prompt: for ``flat`` prompts it is constant, for ``missing`` ones NaN.

    ``letters`` is the share of letters in the chain, which a policy can learn. ``bright`` is the picture's mean.
    """

    rewards: Mapping[str, SegmentName] = {"value": PLAN, "letters": PLAN, "bright": IMAGE}

    def __init__(self, options: None) -> None:
        del options

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {name: [getattr(self, name)(sample) for sample in samples] for name in names}

    def bright(self, sample: Sample) -> float:
        return float(np.asarray(sample.image).mean()) / 255

    def letters(self, sample: Sample) -> float:
        return sum(c.isalpha() for c in sample.chain.raw) / max(1, len(sample.chain.raw))

    def value(self, sample: Sample) -> float:
        if "missing" in sample.prompt.text:
            return math.nan
        return 0.5 if "flat" in sample.prompt.text else (sum(map(ord, sample.chain.raw)) % 97) / 97


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("judge", "values", f"{__name__}:Values")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@hookimpl
def gotr1_step_finished(step: int) -> None:
    """``step 5``: kills the process when the step's metrics are written."""
    if f"step {step}" == MOMENT:
        die()


def half_written(tensors: dict[str, Tensor], path: Path, _write: Any = trainer_state.save_tensors) -> None:
    """``checkpoint 6``: kills the process when half of a file of that step's checkpoint is on disk."""
    _write(tensors, path)
    if path.name == trainer_state.OPTIMIZER and f"checkpoint {int(path.parent.parent.name[5:11])}" == MOMENT:
        os.truncate(path, path.stat().st_size // 2)
        die()


if MOMENT:
    trainer_state.save_tensors = half_written
