"""A supervised training on disk, beside the model that it saves: its config, its log, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import SftConfig, dump, validate
from gotr1_core.engine.files import read_lines, write_atomically
from gotr1_core.engine.interrupts import Interrupted, ignore_sigterm
from gotr1_core.errors import UsageError
from gotr1_core.pictures.sample_files import nan_for_null, null_for_nan
from gotr1_core.runs.checkpoint import explain_full_disk
from gotr1_core.runs.outcome import FINISHED, Outcome, clear_outcome, outcome_of, read_outcome, write_outcome
from gotr1_core.runs.records import lock_folder

SFT_CONFIG, LOG = "sft.yaml", "log.jsonl"
LOGGED = 20  # steps between rows of the log


@dataclass(frozen=True)
class StageOne:
    """A supervised training as its files tell it.

    ``done`` counts its steps. ``losses`` are those of the first and the last step in the log: None without a log, NaN if not finite.
    ``lost`` counts steps that were skipped since it was last started, because a number was not finite.
    """

    config: SftConfig
    ended: Outcome
    done: int
    losses: tuple[float | None, float | None]
    lost: int


def is_stage_one(folder: Path) -> bool:
    """True if a supervised training writes into the folder."""
    return (folder / SFT_CONFIG).is_file()


def read_stage_one(folder: Path) -> StageOne:
    """Reads what :func:`recorded` wrote.

    Raises:
        UsageError: a file is damaged.
    """
    config, ended = validate(SftConfig, read_yaml(folder / SFT_CONFIG)), read_outcome(folder, again=_again(folder))
    try:
        rows = [json.loads(line) for line in _log_lines(folder)]
        if not rows:
            return StageOne(config, ended, 0, (None, None), 0)
        first, last = (float(nan_for_null(row["loss"])) for row in (rows[0], rows[-1]))
        return StageOne(config, ended, rows[-1]["step"] + 1, (first, last), int(rows[-1].get("not_finite", 0)))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise UsageError(f"{folder / LOG} is damaged: it has other rows", hint="restore the file, or remove it") from None


def _again(folder: Path) -> str:
    return f"gotr1 sft {folder / SFT_CONFIG}"


def _log_lines(folder: Path) -> list[str]:
    log = folder / LOG
    return [row for _, row in read_lines(log, hint="restore the file, or remove it")] if log.exists() else []


class Log:
    """The rows of a supervised training on disk: every 20th and the last. It drops those that a stopped one logged after its last save."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.path, self.steps = folder / LOG, steps
        self.rows = _log_lines(folder)
        self.pending: dict[str, Any] | None = None

    def add(self, row: dict[str, Any]) -> str:
        """Takes the row of a step. Returns the line that was written; empty if it is none of those."""
        self.pending = row
        return self.write() if row["step"] % LOGGED == 0 or row["step"] + 1 == self.steps else ""

    def write(self) -> str:
        """Writes the last row that was taken, if that has not been done. Returns its line."""
        row, self.pending = self.pending, None
        if row is None:
            return ""
        self.rows = [earlier for earlier in self.rows if json.loads(earlier)["step"] < row["step"]]
        self.rows.append(json.dumps({name: null_for_nan(value) for name, value in row.items()}))
        write_atomically(self.path, "\n".join(self.rows) + "\n")
        return self.rows[-1]


@contextmanager
def recorded(config: SftConfig) -> Iterator[Log]:
    """Locks the output folder of a supervised training, writes its config there, yields its log, and writes how the block ended.

    Raises:
        UsageError: the folder cannot be made, or another process trains there.
        Interrupted: the user stopped it.
        Gotr1Error: the disk is full.
    """
    folder = config.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}", hint="choose another folder with output=DIR") from None
    with explain_full_disk(folder, again="run it again: it continues from its last save"), lock_folder(folder):
        log = Log(folder, config.steps)
        write_atomically(folder / SFT_CONFIG, dump(config.model_copy(update={"output": folder.absolute()})))
        clear_outcome(folder)
        try:
            yield log
        except BaseException as error:
            stopped = Interrupted("interrupted; the last save is kept", hint=f"{_again(folder)} goes on")
            is_stop = isinstance(error, KeyboardInterrupt)
            with suppress(OSError), ignore_sigterm():  # the disk may be full, and the error tells more
                log.write()
                write_outcome(folder, outcome_of(stopped if is_stop else error, folder, again=_again(folder)))
            if is_stop:
                raise stopped from None
            raise
        write_outcome(folder, Outcome(FINISHED))
