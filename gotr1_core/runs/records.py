"""The files that a run writes: config, environment, metrics, held-out scores, samples with their pictures."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import IO, Any

from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.config.paths import check_regular_files
from gotr1_core.engine.console import print
from gotr1_core.engine.files import DISK_FULL, MISSING, check_writable, read_json, split_lines, write_atomically
from gotr1_core.errors import UsageError, one_line
from gotr1_core.evaluation import HeldOut
from gotr1_core.pictures.sample_files import null_for_nan, write_samples
from gotr1_core.plugins import Registry
from gotr1_core.samples import Sample

LOCK = ".lock"
CONFIG, ENVIRONMENT, INPUTS = "config.yaml", "environment.json", "inputs.json"
METRICS, HELD_OUT, REPORT = "metrics.jsonl", "held-out.json", "report.html"
_RECORDED = {"resumed": (MISSING, [{"from": (str, NoneType), "lost": (MISSING, [str])}]), "accepted": (MISSING, list)}


def run_config(folder: Path) -> RunConfig:
    """The config of a run.

    Raises:
        UsageError: the folder is not a run, or its config is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is not a run", hint="give the folder that `gotr1 train` named")
    try:
        check_regular_files(folder, "*", "checkpoints/*/*", "samples/*/*")
    except OSError as error:
        raise UsageError(f"{folder} is damaged: {error.filename}: {error.strerror}", hint="remove that file") from None
    return validate(RunConfig, read_yaml(folder / CONFIG))


def new_folder(
    registry: Registry, config: RunConfig, inputs: Mapping[str, Any] | None = None, *, recorded: Mapping[str, Any] | None = None
) -> Path:
    """Makes a run's folder, with its config, its environment with ``recorded`` added, and the fingerprints of its ``inputs``.

    It never writes into an existing folder.

    Raises:
        UsageError: the name is taken, or the folder cannot be made.
    """
    folder = config.output / (config.name or time.strftime("%Y%m%d-%H%M%S"))
    check_output(config)
    part = config.output / f".{folder.name}.part"  # renamed when complete, so that no run's folder lacks its config
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_atomically(part / CONFIG, dump(config, folder))
        write_atomically(part / ENVIRONMENT, json.dumps({**environment(registry, config), **(recorded or {})}, indent=1))
        write_atomically(part / INPUTS, json.dumps(inputs or {}, indent=1))
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _taken(folder) from None
        raise UsageError(f"cannot make {folder}: {error.strerror}", hint="choose another output=…") from None
    return folder


def read_environment(folder: Path) -> dict[str, Any]:
    """What :func:`environment` said when the run started, what was recorded then, and what resumes added: ``resumed``, ``accepted``.

    Raises:
        UsageError: there is no such file, or it is damaged.
    """
    return read_json(folder / ENVIRONMENT, _RECORDED)


def check_output(config: RunConfig) -> None:
    """Checks that a run's folder can be made. It is cheap, so it runs before anything is loaded, and in a dry run.

    Raises:
        UsageError: the name is taken or is not that of one folder, or the output folder cannot be written to.
    """
    if config.name is not None and not (_is_visible(config.name) and _is_short(config.name)):
        folder, _, last = config.name.rstrip("/").rpartition("/")
        hint = (
            f"set both: output={config.output / folder} name={last}" if folder and last else "choose a short name that begins with no dot"
        )
        raise UsageError(f"name={config.name[:100]!r} is not the name of one folder", hint=hint)
    if config.name and (config.output / config.name).exists():
        raise _taken(config.output / config.name)
    check_writable(config.output, hint="choose another output=…")


def _is_visible(name: str) -> bool:
    """True for the name of one folder that can be seen: it has no slash, no space at its ends and no dot at its beginning."""
    return Path(name).parts == (name,) and name == name.strip().lstrip(".")


def _is_short(name: str) -> bool:
    """True if a file system takes the name with the `.part` that is added while the folder is made."""
    return len(os.fsencode(name)) <= 240 and "\0" not in name


def _taken(folder: Path) -> UsageError:
    return UsageError(f"{folder} is there already", hint=f"choose another name=…, or go on with it: gotr1 train --resume {folder}")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks a run's folder for this process. However the process ends, the lock ends with it.

    Raises:
        UsageError: another process holds the lock.
    """
    with _open_lock(folder, os.O_RDWR | os.O_CREAT) as file:
        try:
            _lock(file, fcntl.LOCK_EX)
        except OSError:
            raise UsageError(f"{folder} is being trained by another process", hint="wait for it, or stop it") from None
        yield


def _open_lock(folder: Path, flags: int) -> IO[bytes]:
    """Opens the file of a lock, and does not wait if a pipe is there."""
    return os.fdopen(os.open(folder / LOCK, flags | os.O_NONBLOCK, 0o666), "rb", buffering=0)


def _lock(file: IO[bytes], kind: int) -> None:
    """Locks a file. It tries again for a moment, because :func:`is_locked` of another process may hold the lock while it looks."""
    for wait in (0.05, 0.2):
        with suppress(OSError):
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        time.sleep(wait)
    fcntl.flock(file, kind | fcntl.LOCK_NB)


def is_locked(folder: Path) -> bool:
    """True if a process trains in a run's folder."""
    try:
        with _open_lock(folder, os.O_RDONLY) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it has never been locked, or cannot be read
        return False
    return False


def environment(registry: Registry, config: RunConfig) -> dict[str, Any]:
    """Versions of Python, of packages, and of the distribution of every component that the run uses; JSON-ready."""
    packages = {}
    for name in ("gotr1", "torch", "transformers", "diffusers", "accelerate", "peft"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    names = [("planner", config.planner.name), ("renderer", config.renderer.name), ("algorithm", config.algorithm.name)]
    names += [("judge", judge.name) for judge in config.judge]
    names += [("source", config.prompts.source.name)] if config.prompts.source else []
    providers = {f"{kind} {name}": registry.find(kind, name) for kind, name in names}  # type: ignore[arg-type]
    components = {key: {"distribution": p.distribution, "version": p.version} for key, p in providers.items()}
    return {"python": platform.python_version(), "machine": platform.platform(), "packages": packages, "components": components}


class Records:
    """The files of one run. Only the main process (``main``) writes them.

    ``rows`` are those of ``metrics.jsonl`` (unknown: None). ``held_out`` has the scores of each evaluation by its name.
    """

    def __init__(self, folder: Path, *, main: bool = True) -> None:
        self.folder, self.main = folder, main
        self.rows = _read_rows(folder / METRICS)
        self.held_out = read_held_out(folder)
        self._metrics = (folder / METRICS).open("a", encoding="utf-8") if main else None

    def truncate(self, rows: int | None, *, is_done: bool = False) -> None:
        """Keeps the first ``rows`` rows of metrics; with None only the evaluations before training. ``is_done`` keeps the one after it."""
        if not is_done:
            self.held_out.pop("after", None)
        before = [row for row in self.rows if row.get("evaluation") in self.held_out and row["step"] == 0]
        self.rows = before if rows is None else self.rows[:rows]
        if self._metrics is not None:
            self._metrics.close()
            write_atomically(self.folder / METRICS, "".join(f"{json.dumps(row)}\n" for row in self.rows))
            self._metrics = (self.folder / METRICS).open("a", encoding="utf-8")

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends one row to ``metrics.jsonl``. NaN becomes null, because JSON has no NaN."""
        self.rows.append({name: null_for_nan(value) for name, value in row.items()})
        if self._metrics is not None:
            print(json.dumps(self.rows[-1]), file=self._metrics, flush=True)

    def add_samples(self, name: str, samples: Sequence[Sample], most: int = 16) -> None:
        """Writes the first ``most`` samples and their pictures into ``samples/NAME``, and three others that a judge had a problem with."""
        if not self.main:
            return
        folder = self.folder / "samples" / name
        try:
            troubled = [sample for sample in samples[most:] if any(words.problem for words in sample.words.values())]
            write_samples(folder, [*samples[:most], *troubled[:3]])
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            print(f"warning: {folder} could not be written: {one_line(error)}", file=sys.stderr)  # the run needs none of it

    def add_evaluation(self, name: str, scores: HeldOut) -> None:
        """Writes an evaluation's scores, with their prompts, into ``held-out.json``. Paired intervals are computed from them."""
        self.held_out[name] = scores
        if self.main:
            write_atomically(self.folder / HELD_OUT, json.dumps({name: row.as_json() for name, row in self.held_out.items()}))

    def sync(self) -> None:
        """Flushes the metrics to the disk, because a checkpoint counts their rows."""
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Closes the metrics file."""
        if self._metrics is not None:
            self._metrics.close()


def row_problem(row: object) -> str | None:
    """What is wrong with a row of metrics, or None. It has a step and numbers; only the name of an evaluation is a text."""
    if not isinstance(row, dict):
        return "is not a row"
    for name, value in row.items():
        if name != "evaluation" and not isinstance(value, int | float | None):
            return f"says {name} is {value!r}, which is not a number"
        if isinstance(value, int) and abs(value) >= 2**63:
            return f"says {name} is a number of {len(str(value))} digits"
    if not isinstance(row.get("evaluation", ""), str):
        return f"says evaluation is {row['evaluation']!r}, which is not a name"
    return None if isinstance(row.get("step"), int) else "has no step"


def read_held_out(folder: Path) -> dict[str, HeldOut]:
    """The held-out scores of a run by the evaluation's name; empty if there is no file.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / HELD_OUT
    stored = read_json(path) if path.is_file() else {}
    try:
        return {name: HeldOut.from_json(row) for name, row in stored.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(f"{path} is damaged", hint="restore the original file") from None


def metric_rows(path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """Yields each row of a metrics file: the number of its line, the row, and what is wrong with it, or None.

    A last line without a newline was cut when a process was killed; it is left out.
    """
    complete = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    for number, line in split_lines(complete.decode("utf-8-sig", errors="replace")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield number, None, "is not JSON"
        else:
            yield number, row, row_problem(row)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, none of which may be damaged."""
    rows = list(metric_rows(path))
    for number, _, problem in rows:
        if problem:
            raise UsageError(f"{path} is damaged: line {number} {problem}", hint="restore the original file")
    return [row for _, row, _ in rows]
