"""A plugin for tests. For every check, preflight and construction of a component it writes a line with the process's number."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from gotr1_core.components import preflight
from gotr1_core.hookspecs import hookimpl
from gotr1_janus.policy import JanusPolicy
from gotr1_rl.grpo import Grpo
from gotr1_scenes.benchmark import ScenesBenchmark
from gotr1_scenes.judge import ScenesJudge
from gotr1_scenes.source import ScenesSource

COUNTS = Path(os.environ["GOTR1_TEST_COUNTS"])


def counted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with COUNTS.open("a") as file:
            file.write(f"{os.getpid()} {what}\n")
        return function(*args, **kwargs)

    return call


preflight.check = counted("check", preflight.check)
JanusPolicy.preflight = staticmethod(counted("preflight", JanusPolicy.preflight))  # type: ignore[method-assign]
for made in (JanusPolicy, Grpo, ScenesJudge, ScenesSource, ScenesBenchmark):
    made.__init__ = counted(made.__name__, made.__init__)  # type: ignore[misc, method-assign]


@hookimpl
def gotr1_run_finished() -> None:
    """A plugin file must register something."""
