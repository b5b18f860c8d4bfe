"""What a plugin may implement, on one page. Hooks are pluggy's; nothing here imports anything heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

if TYPE_CHECKING:
    import typer

    from gotr1_core.samples import Sample

hookspec = pluggy.HookspecMarker("gotr1")
hookimpl = pluggy.HookimplMarker("gotr1")
"""Marks a plugin's function as the implementation of the hook of its name."""

Kind = Literal["planner", "renderer", "judge", "algorithm", "source", "benchmark", "preset"]
KINDS: tuple[Kind, ...] = ("planner", "renderer", "judge", "algorithm", "source", "benchmark", "preset")


@dataclass(frozen=True)
class Component:
    """One thing that a plugin provides; data only, so that registering it imports nothing.

    ``target`` and ``options`` are ``module:name``: a class called with its options, and their pydantic model. A preset's target is
    ``package:path/to/file.yaml``. A class named as planner and as renderer is one policy in both roles.
    """

    kind: Kind
    name: str
    target: str
    options: str | None = None
    summary: str = ""


@hookspec
def gotr1_components() -> Iterable[Component]:
    """The components a plugin provides."""
    raise AssertionError("a specification, never called")


@hookspec
def gotr1_commands(app: typer.Typer) -> None:
    """Adds commands to ``gotr1``, as ``app.command("name")(function)``. What a command needs it imports when it runs."""


@dataclass(frozen=True)
class Diagnosis:
    """One thing that ``gotr1 doctor`` looked at: what was found, and where it is not ``healthy`` what to do.

    A hint where it is healthy is a note: good to know, and no failure.
    """

    name: str
    healthy: bool
    found: str
    hint: str = ""


@hookspec
def gotr1_checks() -> Iterable[Diagnosis]:
    """What ``gotr1 doctor`` should say about a plugin: is what it needs there? Called when the command runs."""
    raise AssertionError("a specification, never called")


@hookspec
def gotr1_run_started(run: Path, config: Mapping[str, Any], step: int) -> None:
    """A run's folder exists and its components are built; ``step`` steps are done already (not 0 where a run is resumed)."""


@hookspec
def gotr1_step_finished(run: Path, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
    """One step's update is done (the first is 1); ``metrics`` are what ``metrics.jsonl`` got, ``samples`` what the step drew."""


@hookspec
def gotr1_evaluated(run: Path, step: int, name: str, samples: Sequence[Sample]) -> None:
    """Held-out prompts were drawn and judged after ``step`` steps.

    ``name`` is ``before``, ``before, greedy``, ``before, best of N``, ``held-out`` (on the way) or ``after``.
    """


@hookspec
def gotr1_checkpoint_saved(run: Path, step: int, checkpoint: Path) -> None:
    """A checkpoint is on disk, whole."""


@hookspec
def gotr1_run_finished(run: Path, outcome: str, summary: Mapping[str, Mapping[str, float]]) -> None:
    """The run is over: ``outcome`` is ``finished``, ``interrupted`` (it can be resumed) or ``failed``.

    ``summary`` is the mean of every held-out score, by the evaluation's name.
    """
