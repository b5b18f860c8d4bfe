"""How a run ended: ``outcome.json`` in its folder. Its lock tells a run that was killed, and so wrote none, from one that still trains."""

from __future__ import annotations

import json
import os
import re
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from gotr1_core.engine.files import read_json, write_atomically
from gotr1_core.engine.interrupts import Interrupted, Paused
from gotr1_core.errors import Gotr1Error, UsageError, one_line
from gotr1_core.runs.records import is_locked

OUTCOME = "outcome.json"
FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"
RUNNING, KILLED = "running", "killed"  # of runs that have recorded no outcome
LONGEST = 2_000  # characters of an error
SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.I)
SECRETS = (
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),
    re.compile(r"(?<=bearer )[^\s,;'\"]+|(?<=basic )[^\s,;'\"]+", re.I),
    re.compile(r"(?<=[?&])((?:[\w-]*(?:key|token|secret|password|signature))=)[^&\s'\"]+", re.I),
)


@dataclass(frozen=True)
class Outcome:
    """``outcome`` is finished, interrupted or failed; without a record running or killed. The error and its hint say why."""

    outcome: str
    error: str = ""
    hint: str = ""

    @property
    def is_bad(self) -> bool:
        """True if the run failed or was killed."""
        return self.outcome in (FAILED, KILLED)


def outcome_of(error: BaseException, folder: Path, *, again: str = "") -> Outcome:
    """Returns the outcome of the run in ``folder`` that ended by an error, without secrets that the error may name.

    ``again`` is the command that goes on with it; ``gotr1 train --resume`` if not given.
    """
    name = INTERRUPTED if isinstance(error, Interrupted | Paused) else FAILED
    if isinstance(error, Gotr1Error):
        return Outcome(name, without_secrets(error.message), without_secrets(error.hint or ""))
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return Outcome(name, without_secrets(one_line(error)) + where, f"{again or _resume(folder)} --debug shows more if it fails again")


def without_secrets(text: str) -> str:
    """Returns a text, not too long, without what looks like a secret: values of variables of such names, and parts of addresses."""
    values = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "…")
    for pattern in SECRETS:
        text = pattern.sub(lambda match: f"{match[1] if match.lastindex else ''}…", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Writes how the run in ``folder`` ended."""
    record = {name: value for name, value in asdict(outcome).items() if value}
    write_atomically(folder / OUTCOME, json.dumps(record, indent=1, ensure_ascii=False))


def clear_outcome(folder: Path) -> None:
    """Removes the outcome of a run that goes on."""
    (folder / OUTCOME).unlink(missing_ok=True)


def read_outcome(folder: Path, *, again: str = "") -> Outcome:
    """Returns how the run in ``folder`` ended, or whether it still trains; ``again`` as for :func:`outcome_of`.

    Raises:
        UsageError: the record is damaged.
    """
    if (folder / OUTCOME).is_file():
        record = read_json(folder / OUTCOME)
        if record.get("outcome") not in (FINISHED, INTERRUPTED, FAILED):
            raise UsageError(f"{folder / OUTCOME} is damaged: it has no outcome", hint="remove it, and the run counts as killed")
        return Outcome(*(str(record.get(name, "")) for name in ("outcome", "error", "hint")))
    if is_locked(folder):
        return Outcome(RUNNING)
    error = "no process trains it, and it recorded no end: it was killed, or there was no room for the record"
    return Outcome(KILLED, error, f"{again or _resume(folder)} goes on from its last checkpoint")


def _resume(folder: Path) -> str:
    return f"gotr1 train --resume {folder}"
