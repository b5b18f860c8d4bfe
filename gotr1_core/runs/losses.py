"""What a run's records lack when it is resumed: rows of metrics, held-out scores, the report. The run says so and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_core.config.models import RunConfig
from gotr1_core.engine.files import read_json, write_atomically
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import AFTER, HeldOut
from gotr1_core.loop import evaluations_before
from gotr1_core.runs.checkpoint import MANIFEST, read_state
from gotr1_core.runs.outcome import OUTCOME
from gotr1_core.runs.records import HELD_OUT, METRICS, REPORT, metric_rows, read_environment

DAMAGED = ".damaged"
"""Added to the name of a file that cannot be read. It is kept, and the run goes on with a new one."""


@dataclass(frozen=True)
class Losses:
    """What a run's records lack, compared with its last checkpoint.

    Attributes:
        rows: the rows of metrics that belong to the checkpoint and are there; all that can be read if there is no checkpoint.
        is_done: the checkpoint is that of the last step, and the step's evaluation was recorded.
        evaluations: the names of the evaluations that are gone. They can be made again.
        texts: what is gone, a text for each file. ``new`` is true if a text is not in ``environment.json`` yet.
        unreadable: the names of the files that are damaged.
        report: the run is done, but its outcome or its report is missing, or the report is older than the checkpoint.
    """

    rows: tuple[Mapping[str, Any], ...]
    is_done: bool = False
    evaluations: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    new: bool = False
    unreadable: tuple[str, ...] = ()
    report: bool = False

    def __bool__(self) -> bool:
        return bool(self.evaluations or self.new or self.report)


def find_losses(run: Path, config: RunConfig, last: Path | None) -> Losses:
    """Compares the records of a run with its checkpoint ``last``. It reads only.

    Raises:
        UsageError: the checkpoint or ``environment.json`` is damaged.
    """
    state = {} if last is None else read_state(last, deep=False)
    rows, unreadable = _read_metrics(run / METRICS)
    held_out, unreadable_scores = _read_held_out(run / HELD_OUT)
    files = tuple(name for name, is_damaged in ((METRICS, unreadable), (HELD_OUT, unreadable_scores)) if is_damaged)
    texts = [f"{name} is damaged; it is kept as {name}{DAMAGED}" for name in files]
    if last is None:
        return Losses(tuple(rows), texts=tuple(texts), new=bool(files), unreadable=files)
    kept = [row for row in rows[: state["rows"]] if row["step"] <= state["step"]]
    is_done = state["step"] == config.steps and not state["pending"]
    wanted = [*evaluations_before(config), *([AFTER] if is_done else [])]
    lacking = tuple(name for name in wanted if name not in held_out)
    texts += [f"{METRICS} has {len(kept)} of the {state['rows']} rows up to step {state['step']}"] if len(kept) < state["rows"] else []
    texts += [f"{HELD_OUT} lacked {', '.join(map(repr, lacking))}: evaluated again"] if lacking else []
    recorded = [text for text, _ in recorded_losses(run)]
    report, manifest = run / REPORT, last / MANIFEST
    stale = not (run / OUTCOME).is_file() or not report.is_file() or report.stat().st_mtime_ns < manifest.stat().st_mtime_ns
    new = any(text not in recorded for text in texts)
    return Losses(tuple(kept), is_done, lacking, tuple(texts), new, files, is_done and stale)


def mend_records(run: Path, losses: Losses) -> None:
    """Sets unreadable files aside, and writes the metrics that are left."""
    for name in losses.unreadable:
        (run / name).replace(run / f"{name}{DAMAGED}")
    if losses.texts:
        write_atomically(run / METRICS, "".join(f"{json.dumps(row)}\n" for row in losses.rows))


def recorded_losses(run: Path) -> Iterator[tuple[str, str]]:
    """Yields what earlier resumes noticed, and the name of the checkpoint from which each went on.

    Raises:
        UsageError: ``environment.json`` is damaged.
    """
    for entry in read_environment(run).get("resumed", ()):
        yield from ((text, entry["from"] or "the start") for text in entry.get("lost", ()))


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows that can be read, and whether something else is there. A last line without a newline was cut; that is no damage."""
    if not path.is_file():
        return [], path.exists()  # a folder
    rows = list(metric_rows(path))
    return [row for _, row, problem in rows if problem is None], any(problem for _, _, problem in rows)


def _read_held_out(path: Path) -> tuple[set[str], bool]:
    """The names of the evaluations, and whether the file is damaged. Then none of them can be read."""
    if not path.exists():
        return set(), False
    try:
        return {name for name, row in read_json(path).items() if HeldOut.from_json(row)}, False
    except (UsageError, AttributeError, KeyError, TypeError, ValueError):
        return set(), True
