"""Times whole steps of the default run alone, and beside one and two busy processes.

    python benchmarks/contention.py                      # about ten minutes
    python benchmarks/contention.py --steps 8 --rounds 3

``default`` is what the command line chooses. The others are fixed in the environment: one thread, and all cores with torch's own spin or a
short one. Each row is a run of ``--steps`` steps of one command; the median of its steps without the first counts, and of ``--rounds``
such runs, contenders in turn, the median again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all cores": {"OMP_NUM_THREADS": str(os.cpu_count())},
    "all cores, short spin": {"OMP_NUM_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": "10000"},
}
SETTINGS = ["evaluation.every=0", "prompts.held_out=8", "evaluation.prompts=8", "save_samples=0", "checkpoint.every=0", "tracker=null"]


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that count, while the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds_of_a_step(way: str, steps: int) -> tuple[float, list[int]]:
    """Median seconds of a step of one run, without the first, and the threads of each step."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", f"steps={steps}", "name=run", f"output={folder}", *SETTINGS]
        command = [sys.executable, "-c", "from gotr1_core.cli.main import run; run()", *words]
        subprocess.run(command, env={**clean, **WAYS[way]}, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "evaluation" not in row]
    return statistics.median(row["seconds"] for row in rows[1:]), [row["threads"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for neighbours in (0, 1, 2):
            for way in WAYS if neighbours == 0 else ("default", "one thread"):
                with busy(neighbours):
                    seconds, threads = seconds_of_a_step(way, args.steps)
                print(f"{way:24} beside {neighbours}: {seconds:6.2f} s, threads {threads}", flush=True)
                found.setdefault((way, neighbours), []).append(seconds)
    medians = {key: statistics.median(values) for key, values in found.items()}
    alone = medians["default", 0]
    best = min((value, way) for (way, neighbours), value in medians.items() if neighbours == 0 and way != "default")
    print(f"\ndefault, alone: {alone:.2f} s, {alone / best[0]:.2f} of the fastest fixed setting ({best[1]}, {best[0]:.2f} s); wanted 1.03")
    for neighbours, limit in ((1, 2.0), (2, 3.5)):
        beside = medians["default", neighbours]
        print(f"default, beside {neighbours}: {beside:.2f} s, {beside / alone:.2f} times alone; wanted {limit}")


if __name__ == "__main__":
    main()
