"""A plugin for kill.py: its process kills itself (SIGKILL) where GOTR1_KILL says, at the first time after GOTR1_KILL_AFTER such moments.

``prune``: half of an old checkpoint is removed. ``report``: half of the report is written. ``evaluation``: some held-out prompts are drawn.
"""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

from gotr1_core import evaluation, loop
from gotr1_core.engine.files import write_atomically
from gotr1_core.hookspecs import hookimpl
from gotr1_core.runs import checkpoint, report
from gotr1_core.runs.records import REPORT

_before = [int(os.environ.get("GOTR1_KILL_AFTER", "0"))]


def _die_at_last() -> None:
    """Kills this process, if it is the moment's turn."""
    _before[0] -= 1
    if _before[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)


def _remove(path: Path, _whole: Any = shutil.rmtree, **more: Any) -> None:
    if path.suffix == checkpoint.REMOVED and path.exists():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        for file in files[: len(files) // 2]:
            file.unlink()
        _die_at_last()
    _whole(path, **more)


def _write(path: Path, text: str, _whole: Any = write_atomically) -> None:
    if path.name == REPORT:
        path.with_name(f"{path.name}.part").write_text(text[: len(text) // 2], encoding="utf-8")
        _die_at_last()
    _whole(path, text)


def _evaluate(*given: Any, _whole: Any = evaluation.evaluate, **more: Any) -> Any:
    samples = _whole(*given, **more)
    _die_at_last()
    return samples


class _Shutil:
    """shutil for the module that removes checkpoints."""

    rmtree = staticmethod(_remove)


@hookimpl
def gotr1_run_started() -> None:
    """Puts the moment into the functions of gotr1."""
    match os.environ.get("GOTR1_KILL"):
        case "prune":
            vars(checkpoint)["shutil"] = _Shutil
        case "report":
            vars(report)["write_atomically"] = _write
        case "evaluation":
            vars(loop)["evaluate"] = _evaluate
