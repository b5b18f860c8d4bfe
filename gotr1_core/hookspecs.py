"""What a plugin may implement, on one page. Hooks are pluggy's; nothing here imports anything heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pluggy

hookspec = pluggy.HookspecMarker("gotr1")
hookimpl = pluggy.HookimplMarker("gotr1")

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
def gotr1_run_started(run: Path, config: Mapping[str, Any]) -> None:
    """A run's folder exists and its components are built."""


@hookspec
def gotr1_step_finished(run: Path, step: int, metrics: Mapping[str, float]) -> None:
    """One step's update is done; ``metrics`` are what ``metrics.jsonl`` got."""


@hookspec
def gotr1_run_finished(run: Path, summary: Mapping[str, Any]) -> None:
    """The last step is done and the last checkpoint is written."""
