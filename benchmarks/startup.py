"""Measures how long the command line takes: seconds of complete processes, compared with importing Typer, which is the lower bound.

python benchmarks/startup.py --runs 20

The minimum is the cost of the program, the median is what a user of this machine waits. Runs take turns, so that other load on the machine
affects all of them. On a terminal the help has boxes, and their library takes time; in a pipe the help is plain text.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

GOTR1 = [found] if (found := shutil.which("gotr1")) else [sys.executable, "-m", "gotr1_core.cli.main"]
TYPER = "import typer"


def piped(command: Sequence[str]) -> float:
    """Runs a command with its output in a pipe; returns its seconds."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def on_terminal(command: Sequence[str]) -> float:
    """Runs a command with its output on a terminal; returns its seconds."""
    begun = time.perf_counter()
    here, there = os.openpty()
    process = subprocess.Popen(command, stdin=there, stdout=there, stderr=there)
    os.close(there)
    try:
        while os.read(here, 4096):
            pass
    except OSError:  # the end of a terminal raises this
        pass
    os.close(here)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - begun


CASES = {
    TYPER: (piped, [sys.executable, "-c", TYPER]),
    "gotr1 --help": (piped, [*GOTR1, "--help"]),
    "gotr1 --help, on a terminal": (on_terminal, [*GOTR1, "--help"]),
    "gotr1 plugins": (piped, [*GOTR1, "plugins"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(runs + 1):
        for name, (measure, command) in CASES.items():
            taken = measure(command)
            if turn:  # the first turn writes bytecode
                seconds[name].append(taken)
    print(f"{'':<28} {'minimum':>9} {'median':>9} {'ratio':>7}")
    for name, values in seconds.items():
        print(f"{name:<28} {min(values):>7.3f} s {statistics.median(values):>7.3f} s {min(values) / min(seconds[TYPER]):>7.2f}")


if __name__ == "__main__":
    main()
