"""Everything a plugin may implement, on one page. The hooks are pluggy's; nothing here imports anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

if TYPE_CHECKING:
    import typer

    from gotr1_core.protocols import RewardJudge
    from gotr1_core.samples import Sample

hookspec = pluggy.HookspecMarker("gotr1")
hookimpl = pluggy.HookimplMarker("gotr1")
"""Marks a plugin's function as the implementation of the hook with its name."""

Kind = Literal["planner", "renderer", "judge", "algorithm", "source", "benchmark", "preset"]
KINDS: tuple[Kind, ...] = ("planner", "renderer", "judge", "algorithm", "source", "benchmark", "preset")


@dataclass(frozen=True)
class Component:
    """One thing that a plugin provides. It is data only, so registering it imports nothing.

    Attributes:
        kind: what it is. A class registered as planner and as renderer is one policy in both roles.
        name: how users name it.
        target: ``module:name`` of a class, called with its options; of a preset ``package:path/to/file.yaml``.
        options: ``module:name`` of the options' pydantic model, if it has any.
        summary: one line for `gotr1 list`.
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
    """Adds commands to ``gotr1``, as ``app.command("name")(function)``. A command imports what it needs when it runs."""


@dataclass(frozen=True)
class Diagnosis:
    """One thing that ``gotr1 doctor`` looked at: what it found and, if that is not ``healthy``, what to do.

    A hint of something healthy is a note: good to know, and no failure.
    """

    name: str
    healthy: bool
    found: str
    hint: str = ""


@hookspec
def gotr1_checks() -> Iterable[Diagnosis]:
    """Checks for ``gotr1 doctor``: is what the plugin needs there? Called when the command runs."""
    raise AssertionError("a specification, never called")


@hookspec(firstresult=True)
def gotr1_wrap_judge(judge: RewardJudge, cache: str | None, facts: Callable[[], Mapping[str, Any]]) -> RewardJudge | None:
    """A judge was made. Returns another one to use in its place, which asks it and keeps what it says, or None.

    ``cache`` is that of the config: a folder, ``off``, or None. ``facts()`` has what its scores depend on, as JSON: its name, its
    distribution with the version, its options, and the fingerprints of its files.
    """


@hookspec
def gotr1_run_started(run: Path, config: Mapping[str, Any], step: int) -> None:
    """A run's folder exists and its components are built. ``step`` steps are already done (more than 0 in a resumed run)."""


@hookspec
def gotr1_step_finished(run: Path, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
    """One step's update is done; the first is 1. ``metrics`` are those of ``metrics.jsonl``, ``samples`` what the step drew."""


@hookspec
def gotr1_evaluating(run: Path, step: int, name: str, total: int, samples: Sequence[Sample]) -> None:
    """An evaluation is under way. Called at its start, with no samples, and after each ``evaluation.batch`` of prompts.

    ``samples`` are those that the first process has drawn and judged so far, ``total`` how many it will have. ``name`` is that of
    ``gotr1_evaluated``.
    """


@hookspec
def gotr1_evaluated(run: Path, step: int, name: str, samples: Sequence[Sample]) -> None:
    """Held-out prompts were drawn and judged after ``step`` steps.

    ``name`` is ``before``, ``before, greedy``, ``before, best of N``, ``held-out`` (on the way) or ``after``.
    """


@hookspec
def gotr1_checkpoint_saved(run: Path, step: int, checkpoint: Path) -> None:
    """A complete checkpoint is on disk."""


@hookspec
def gotr1_run_finished(run: Path, outcome: str, summary: Mapping[str, Mapping[str, float]]) -> None:
    """The run is over: ``outcome`` is ``finished``, ``interrupted`` (it can be resumed) or ``failed``.

    ``summary`` is the mean of every held-out score, by the evaluation's name.
    """
