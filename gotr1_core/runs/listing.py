"""Several runs on disk: what became of each, and how their held-out scores differ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gotr1_core.config.models import RunConfig, make_sampling
from gotr1_core.engine.intervals import Estimate
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import AFTER, HeldOut, paired
from gotr1_core.runs.outcome import read_outcome
from gotr1_core.runs.records import CONFIG, Records, read_held_out, run_config
from gotr1_core.runs.stage_one import is_stage_one, read_stage_one

ALL = "all"  # the name of all categories together


@dataclass(frozen=True)
class RunSummary:
    """One run in a list.

    Attributes:
        run: its folder.
        outcome: as :func:`read_outcome` says, or ``damaged``; ``error`` says why.
        done, steps: how many steps it has done, and of how many.
        metric: the score that chooses its best checkpoint; ``loss`` of a supervised training.
        before, score: means of that score before training and in the last evaluation, or first and last loss; None if it is not known.
        size: bytes of all its files.
    """

    run: str
    outcome: str
    error: str = ""
    done: int = 0
    steps: int = 0
    metric: str = ""
    before: float | None = None
    score: float | None = None
    size: int = 0


def summarize_run(folder: Path) -> RunSummary:
    """Summarizes a run from its files. A file that is damaged makes the outcome ``damaged``."""
    try:
        if is_stage_one(folder):
            stage = read_stage_one(folder)
            ended, (first, last) = stage.ended, stage.losses
            return RunSummary(str(folder), ended.outcome, ended.error, stage.done, stage.config.steps, "loss", first, last, _size(folder))
        config, ended, rows = run_config(folder), read_outcome(folder), Records(folder, main=False).rows
        metric = config.evaluation.metric
        scores = [row.get(metric) for row in rows if row.get("evaluation") in ("before", "held-out", AFTER)] or [None]
        done = max((int(row["step"]) for row in rows if "evaluation" not in row), default=0)
        last = scores[-1] if len(scores) > 1 else None
        return RunSummary(str(folder), ended.outcome, ended.error, done, config.steps, metric, scores[0], last, _size(folder))
    except (UsageError, KeyError, TypeError, ValueError) as error:
        return RunSummary(str(folder), "damaged", str(error), size=_size(folder))


def find_runs(folder: Path) -> list[Path]:
    """The runs in a folder, by name; the folder alone if it is a run itself.

    Raises:
        UsageError: there is no such folder, or it cannot be read.
    """
    try:
        if _is_run(folder):
            return [folder]
        return sorted(path for path in folder.iterdir() if _is_run(path) and not path.name.startswith("."))
    except (OSError, ValueError) as error:  # also a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {folder}: {reason}", hint="give the folder that holds runs, such as runs") from None


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or is_stage_one(folder)


def _size(folder: Path) -> int:
    """The bytes of all files in a folder. Links are not followed."""
    size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a run that trains has just removed it
                size += Path(where, name).lstat().st_size
    return size


@dataclass(frozen=True)
class Comparison:
    """How the held-out scores of one evaluation differ from those of another.

    ``prompts`` is how many prompts both have. ``scores`` are the changes by category, ``all`` first, and score.
    """

    start: str
    end: str
    prompts: int
    scores: Mapping[str, Mapping[str, Estimate]]


def compare_runs(runs: Sequence[Path], evaluation: str = AFTER) -> list[Comparison]:
    """Compares an evaluation of the first run with that of each other run; of a single run, with that before training.

    Raises:
        UsageError: a folder is no run, lacks the evaluation, or is damaged; or two have no prompt in common.
    """
    first = _evaluation(runs[0], evaluation)
    if len(runs) == 1:
        return [_compare(f"{runs[0]}, before", _evaluation(runs[0], "before"), f"{runs[0]}, {evaluation}", first)]
    return [_compare(str(runs[0]), first, str(run), _evaluation(run, evaluation)) for run in runs[1:]]


def differing_settings(runs: Sequence[Path]) -> list[str]:
    """The settings of evaluations that are not the same in all runs, so that their scores may differ for that reason."""
    configs = [run_config(run) for run in runs]
    return [name for name, values in _evaluation_settings(configs).items() if len(set(values)) > 1]


def _evaluation_settings(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    return {
        "judge": [json.dumps([judge.model_dump(mode="json") for judge in c.judge], sort_keys=True) for c in configs],
        "evaluation.seed": [str(c.evaluation.seed) for c in configs],
        "evaluation.sampling": [str(make_sampling(c.evaluation.sampling or c.sampling)) for c in configs],
        "reward": [c.reward for c in configs],
    }


def _evaluation(run: Path, name: str) -> HeldOut:
    run_config(run)  # refuses a folder that is not a run
    held_out = read_held_out(run)
    if name not in held_out:
        has = ", ".join(map(repr, held_out)) or "none"
        raise UsageError(f"{run} has no evaluation {name!r}", hint=f"it has {has}; --evaluation compares another one of all runs")
    return held_out[name]


def _compare(start: str, before: HeldOut, end: str, after: HeldOut) -> Comparison:
    common = before.rows().keys() & after.rows().keys()
    if not common:
        raise UsageError(f"{start} and {end} have no held-out prompt in common", hint="compare runs with the same held-out prompts")
    categories = [None, *(name for name in dict.fromkeys(before.categories) if name)]
    names = [name for name in before if name in after]
    scores = {category or ALL: {name: paired(before, after, name, category=category) for name in names} for category in categories}
    return Comparison(start, end, len(common), scores)
