"""Random inputs end in a result or in an error of two lines: never in a traceback, "looks like a bug", a hang or gigabytes.

The seed is fixed, and the usual run is short. CONTRIBUTING.md says how to make a long one, with other seeds. A fault names its case.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import fuzzing
import psutil
import pytest
from PIL import Image
from test_paths import LIBRARY, READ, WRITTEN, words

from gotr1_core.cli.main import call
from gotr1_core.data.chains import read_chains
from gotr1_core.data.examples import read_examples
from gotr1_core.data.pictures import check_picture, read_picture
from gotr1_core.data.prompts import read_prompts
from gotr1_core.errors import Gotr1Error
from gotr1_core.pictures.sample_files import find_pictures
from gotr1_core.runs.report import write_report
from gotr1_core.runs.restore import find_checkpoint
from gotr1_core.runs.start import resumed_config

SECONDS = float(os.environ.get("GOTR1_FUZZ_SECONDS", 0))
SEED = os.environ.get("GOTR1_FUZZ_SEED", "0")
CASE = os.environ.get("GOTR1_FUZZ_CASE")
LIMIT = 60  # seconds that a case may take, on a busy machine
MEMORY = 3 * 2**30  # bytes that all cases together may take beside what is loaded


@pytest.fixture
def here(trained: Path) -> Path:
    """The working folder, with a run, pictures, and what the paths name."""
    folder = trained.parent.parent
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "train.txt").write_text("a circle\na square\nx\n")
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    for name in ("environment.json", "held-out.json"):
        (trained / name).write_text("{}")
    (trained / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5, "seconds": 1.0}\n{"step": 2, "reward": null, "seconds": 1.0}\n')
    prompts = '"prompts": [["1", "x"], ["2", "y"]]'
    (trained / "held-out.json").write_text(f'{{"before": {{{prompts}, "pi": [0, 1]}}, "after": {{{prompts}, "pi": [1, null]}}}}')
    (trained / "samples" / "held-out-after").mkdir(parents=True)
    row = '{"prompt": "x", "image": "000.png", "scores": {"pi": 0.5}, "legend": {"1": "a"}, "chain": ""}'
    (trained / "samples" / "held-out-after" / "samples.jsonl").write_text(f"{row}\n")
    return folder


class TooLong(BaseException):
    """A case took more than LIMIT seconds."""


@contextmanager
def limits() -> Iterator[list[str]]:
    """Ends what takes too long, and refuses memory beyond MEMORY. Yields a list that gets the places where it ended a case."""
    stopped: list[str] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append("".join(traceback.format_stack(frame)[-4:]))
        raise TooLong  # the command line tells of it as of any error

    handler, (soft, hard) = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, hard))
    try:
        yield stopped
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def try_cases(kind: str, count: int, case: Callable[[random.Random, str], str | None]) -> None:
    """Tries ``count`` cases, or as many as SECONDS allow. ``case`` returns what is wrong, or None, and may raise errors of gotr1."""
    until = time.monotonic() + SECONDS
    faults: dict[str, str] = {}
    with limits() as stopped:
        for number in [int(CASE)] if CASE else itertools.count():
            if not CASE and number >= count and time.monotonic() > until:
                break
            rng = random.Random(f"{SEED} {kind} {number}")
            signal.alarm(LIMIT)
            try:
                wrong = case(rng, f"case-{number}")
            except Gotr1Error:
                wrong = None
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                wrong = "".join(traceback.format_exception(error)[-4:])
            finally:
                signal.alarm(0)
            if stopped:
                wrong = f"it takes more than {LIMIT} seconds:\n{stopped.pop()}"
            if wrong:
                faults.setdefault(wrong[-300:], f"case {number}: {wrong}")
    print(f"{kind}: {number} cases")
    assert not faults, "\n".join([f"{len(faults)} faults with the seed {SEED}", *list(faults.values())[:20]])


def is_there(path: str) -> bool:
    """True if there is such a file or folder, or one that cannot be looked at."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return True


def command(line: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """Runs a command. Returns what is wrong with its end."""
    import sys

    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    capsys.readouterr()
    status = call(list(line))
    out, err = capsys.readouterr()
    said = f"{[word[:200] for word in line]} ended with {status}:\n{err[-2000:]}"
    if "looks like a bug" in err:
        try:
            call([*line, "--debug"])
        except Exception:
            said += "".join(traceback.format_exc().splitlines(keepends=True)[-8:])
        return said
    rows = err.rstrip("\n").split("\n")
    is_error = any(row.startswith("error: ") for row in rows) or (status == 1 and line[0] in ("check", "doctor") and out)
    return None if status == 0 or (status in (1, 2) and is_error and "Traceback" not in err) else said


@pytest.mark.parametrize(("kind", "count"), [("settings", 60), ("config_files", 60)])
def test_settings_and_yaml(kind: str, count: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = getattr(fuzzing, kind)
    try_cases(kind, count, lambda rng, name: command(make(rng, name), capsys))


def test_paths(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def case(rng: random.Random, name: str) -> str | None:
        line, path = rng.choice([*READ.values(), *WRITTEN.values()]), fuzzing.random_path(rng)
        if line in [READ[name] for name in LIBRARY] and ("pipe" in path or "/" in path or is_there(path)):
            return None  # a library opens the path itself, and may wait for a pipe or read a device to its end
        if line in WRITTEN.values() and (path.startswith(("/", "~")) or ".." in path):
            return None  # it may be a good path, and nothing is written elsewhere
        return command(words(line, path), capsys)

    try_cases("paths", 40, case)


def test_pictures(tmp_path: Path) -> None:
    def case(rng: random.Random, name: str) -> None:
        path = tmp_path / "picture.png"
        path.write_bytes(fuzzing.pictures(rng))
        check_picture(path)
        assert read_picture(path).mode == "RGB"

    try_cases("pictures", 500, case)


def test_data_files(here: Path) -> None:
    readers: list[Callable[[Path], Any]] = [
        read_prompts,
        lambda path: read_chains(path, key="chains"),
        read_examples,
        lambda path: find_pictures([path]),
    ]

    def case(rng: random.Random, name: str) -> None:
        suffix, data = fuzzing.data_files(rng)
        path = here / f"data{suffix}"
        path.write_bytes(data)
        rng.choice(readers)(path)

    try_cases("data files", 400, case)


def test_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here / "runs" / "mine"
    shutil.move(run, here / "kept")
    uses: list[Callable[[], Any]] = [
        lambda: write_report(run),
        lambda: find_checkpoint(run),
        lambda: resumed_config(run, ["steps=9"]),
        lambda: command(["doctor", str(run)], capsys),
        lambda: command(["generate", "x", "--overwrite", "--checkpoint", str(run)], capsys),
    ]

    def case(rng: random.Random, name: str) -> str | None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(here / "kept", run)
        damaged = fuzzing.run_files(rng, run)
        wrong = rng.choice(uses)()
        return f"{damaged}: {wrong}" if isinstance(wrong, str) else None

    try_cases("runs", 60, case)
