"""Measures whether `gotr1 train` learns: runs it as a user would, for three seeds, and writes the table of README.

    python benchmarks/learning.py --out build/learning

Each seed is a process of its own, timed from outside. A finished seed is not run again. Held-out prompts and evaluation seeds are the same
in every run; they were fixed before any result was seen. So the rows of the untrained model, decoded greedily and with the best of four
samples, are the same for every seed: one more run, of one step, makes them, and the seeds are timed as a user runs them. With words for
gotr1 train these two rows are left out. Differences are paired, prompt by prompt. Scores are the exact judge's, even if
another judge gives the reward; `reward` is what the run was trained with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gotr1_core.engine.intervals import Estimate, known_mean
from gotr1_core.evaluation import HeldOut, paired
from gotr1_core.pictures.sample_files import nan_for_null

SHOWN = ("plan_right", "correct", "ri", "pi", "reward")
UNTRAINED = ("steps=1", "evaluation.greedy=true", "evaluation.best_of=4")


def run(seed: int, out: Path, words: list[str], name: str = "") -> dict[str, Any]:
    """Trains once. Returns held-out scores, wall-clock seconds and peak memory in GB."""
    folder = out / (name or f"seed-{seed}")
    done = folder / "benchmark.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    begun = time.perf_counter()
    command = [sys.executable, "-m", "gotr1_core.cli.main", "train", f"seed={seed}", f"output={out}", f"name={folder.name}", *words]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{folder.name} failed; remove {folder} and run again")
    result = {
        "seed": seed,
        "seconds": time.perf_counter() - begun,
        "memory": usage.ru_maxrss / 1e6,
        "rows": json.loads((folder / "held-out.json").read_text()),
    }
    done.write_text(json.dumps(result))
    return result


def column(rows: dict[str, Any], score: str) -> list[float]:
    """Returns a score of every prompt, NaN if it is not available. If several judges offer the score, it is the exact judge's."""
    return [nan_for_null(value) for value in rows.get(f"scenes.{score}", rows[score])]


def change(rows: dict[str, Any], score: str) -> Estimate:
    """Returns the paired change of a score. If several judges offer the score, it is the exact judge's."""
    before, after = (HeldOut.from_json(rows[name]) for name in ("before", "after"))
    return paired(before, after, f"scenes.{score}" if f"scenes.{score}" in before else score)


def table(results: list[dict[str, Any]], untrained: dict[str, Any]) -> str:
    """Returns Markdown: means over seeds for each compared model, then each seed's changes with their paired intervals.

    ``untrained`` are more held-out scores of the untrained model, by the evaluation's name.
    """
    names = ["before", *untrained, *(name for name in results[0]["rows"] if name != "before" and name not in untrained)]
    lines = ["| model | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name in names:
        cells = []
        for score in SHOWN:
            means = [known_mean(column((untrained | r["rows"])[name], score)) for r in results]
            cells.append(f"{sum(means) / len(means):.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| seed | change in correct | change in ri | seconds | peak GB |", "|---|---|---|---|---|"]
    for r in results:
        shown = " | ".join(change(r["rows"], score).text("+") for score in ("correct", "ri"))
        lines.append(f"| {r['seed']} | {shown} | {r['seconds']:.0f} | {r['memory']:.2f} |")
    gains = [change(r["rows"], "correct").mean for r in results]
    lines += ["", f"Mean change in `correct` over {len(gains)} seeds: {sum(gains) / len(gains):+.3f}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("words", nargs="*", help="KEY=VALUE for gotr1 train; without any, the figures are those of README")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = [run(seed, args.out, args.words) for seed in args.seeds]
    untrained = {} if args.words else run(args.seeds[0], args.out, list(UNTRAINED), "untrained")["rows"]
    text = table(results, {name: row for name, row in untrained.items() if name.startswith("before, ")})
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
