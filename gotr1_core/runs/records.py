"""The files that a run writes: config, environment, metrics, held-out scores, samples with their pictures."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.engine.files import check_writable, read_json, split_lines, write_atomically
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import HeldOut
from gotr1_core.pictures.sample_files import null_for_nan, write_samples
from gotr1_core.plugins import Registry
from gotr1_core.samples import Sample

CONFIG, ENVIRONMENT, INPUTS = "config.yaml", "environment.json", "inputs.json"
METRICS, HELD_OUT = "metrics.jsonl", "held-out.json"


def run_config(folder: Path) -> RunConfig:
    """The config of a run.

    Raises:
        UsageError: the folder is not a run, or its config is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is not a run", hint="give the folder that `gotr1 train` named")
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


def check_output(config: RunConfig) -> None:
    """Checks that a run's folder can be made. It is cheap, so it runs before anything is loaded, and in a dry run.

    Raises:
        UsageError: the name is taken or is not that of one folder, or the output folder cannot be written to.
    """
    if config.name is not None and (Path(config.name).parts != (config.name,) or config.name == ".." or not _is_short(config.name)):
        folder, _, last = config.name.rstrip("/").rpartition("/")
        hint = f"set both: output={config.output / folder} name={last}" if folder and last else "choose a short name"
        raise UsageError(f"name={config.name[:100]!r} is not the name of one folder", hint=hint)
    if config.name and (config.output / config.name).exists():
        raise _taken(config.output / config.name)
    check_writable(config.output, hint="choose another output=…")


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
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{folder} is being trained by another process", hint="wait for it, or stop it") from None
        yield


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
        held_out = folder / HELD_OUT
        stored = read_json(held_out) if held_out.is_file() else {}
        try:
            self.held_out = {name: HeldOut.from_json(row) for name, row in stored.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UsageError(f"{held_out} is damaged", hint="restore the original file") from None
        self._metrics = (folder / METRICS).open("a", encoding="utf-8") if main else None

    def truncate(self, rows: int | None) -> None:
        """Keeps the first ``rows`` rows of metrics. With None it keeps only the evaluations before training."""
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
        """Writes the first ``most`` samples and their pictures into ``samples/NAME``."""
        if self.main:
            write_samples(self.folder / "samples" / name, samples[:most])

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


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics file. A last line without a newline was cut when a process was killed; it is left out."""
    complete = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    try:
        return [dict(json.loads(line)) for _, line in split_lines(complete.decode("utf-8-sig", errors="replace"))]
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="restore the original file") from None
