"""Estimates how long a run will still take, from its first step on: from the steps and the evaluations that it has made."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from gotr1_core.evaluation import AFTER

RECENT = 20  # steps


class TimeLeft:
    """Is told what happens in a run and when, and says when the run will end. All times are seconds of one clock.

    A step takes as long as the last ``RECENT`` steps did on average, saving included. A prompt of an evaluation takes as long as those
    before it did; before the first evaluation, as in a resumed run, as long as a sample of a step.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.step, self.samples = steps, 0, 1
        self.every = self.on_the_way = self.held_out = 0  # steps between evaluations; prompts of these, and of the last one
        self.begun: float | None = None  # when the evaluation that is under way began
        self.evaluated_step, self.evaluated_prompts, self.evaluated_seconds = 0, 0, 0.0
        self.marks: deque[float] = deque(maxlen=RECENT + 1)  # when steps ended, as if evaluations took no time

    def started(self, now: float, config: Mapping[str, Any], step: int) -> None:
        """The run starts after ``step`` steps."""
        self.step = self.evaluated_step = step
        self.every, self.on_the_way = config["evaluation"]["every"], config["evaluation"]["prompts"]
        self.held_out = self.on_the_way
        self.samples = config["groups"] * config["plans"] * config["images"]
        self.marks.append(now)

    def evaluated(self, now: float, name: str, prompts: int) -> None:
        """The evaluation ``name`` of so many prompts, which began at ``begun``, is done."""
        self.evaluated_step = self.step
        self.held_out = {AFTER: 0, "before": prompts}.get(name, self.held_out)
        if self.begun is not None:  # else a resume made it again, before the run started
            self.marks = deque((mark + now - self.begun for mark in self.marks), self.marks.maxlen)
            if not name.startswith("before, "):  # these take several samples a prompt, or greedy ones; none is still to come
                self.evaluated_prompts, self.evaluated_seconds = self.evaluated_prompts + prompts, self.evaluated_seconds + now - self.begun
            self.begun = None

    def stepped(self, now: float, step: int) -> None:
        """Step number ``step`` is done."""
        self.step = step
        self.marks.append(now)

    def ends(self) -> float | None:
        """When the run will end; None before its first step is done."""
        if len(self.marks) < 2:
            return None
        per_step = (self.marks[-1] - self.marks[0]) / (len(self.marks) - 1)
        per_prompt = self.evaluated_seconds / self.evaluated_prompts if self.evaluated_prompts else per_step / self.samples
        on_the_way = len([s for s in range(self.evaluated_step + 1, self.steps) if s % self.every == 0]) if self.every else 0
        return self.marks[-1] + (self.steps - self.step) * per_step + (on_the_way * self.on_the_way + self.held_out) * per_prompt
