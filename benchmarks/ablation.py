"""The paper's ablation in miniature: trains the default preset with other reward expressions, to see which rewards planning needs.

    python benchmarks/ablation.py --out build/ablation

Five rewards x three seeds, with the same number of steps, held-out prompts and evaluation seeds. The exact judge scores. Given again, the
command continues: finished runs are not repeated, and an interrupted one is resumed. Writes ``table.md`` and ``plot.svg``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from gotr1_core.engine.intervals import Estimate, known_mean
from gotr1_core.evaluation import HeldOut, paired

REWARDS = {
    "all": "pi * (sem + spa) / 2 * ri",
    "pi only": "pi",
    "without ri": "pi * (sem + spa) / 2",
    "without sem and spa": "pi * ri",
    "sum instead of product": "(pi + (sem + spa) / 2 + ri) / 3",
}
SHOWN = ("correct", "plan_right", "ri", "pi")
FIXED = ("steps=60", "evaluation.every=0", "evaluation.best_of=0", "evaluation.greedy=false", "save_samples=0")


def run(name: str, seed: int, out: Path, words: list[str]) -> dict[str, HeldOut]:
    """Trains once if needed. Returns held-out scores before and after, sample by sample."""
    folder = out / f"{name.replace(' ', '-')}-{seed}"
    rows = folder / "held-out.json"
    if not rows.is_file() or "after" not in json.loads(rows.read_text()):
        command = [sys.executable, "-m", "gotr1_core.cli.main", "train"]
        started = (folder / "config.yaml").is_file()
        command += (
            ["--resume", str(folder)] if started else [f"reward={REWARDS[name]}", f"seed={seed}", f"output={out}", f"name={folder.name}"]
        )
        command += [] if started else [*FIXED, *words]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"{folder} failed")
    return {name: HeldOut.from_json(row) for name, row in json.loads(rows.read_text()).items()}


def changes(runs: list[dict[str, HeldOut]], score: str) -> Estimate:
    """Returns the mean change over seeds with its 95 % interval over prompts. A prompt's change is its mean over seeds."""
    prompts = runs[0]["before"].prompts
    assert all(run[model].prompts == prompts for run in runs for model in ("before", "after"))
    count = len(prompts)
    means = ([sum(r[model][score][i] for r in runs) / len(runs) for i in range(count)] for model in ("before", "after"))
    before, after = (HeldOut(prompts, {score: values}) for values in means)
    return paired(before, after, score)


def table(results: dict[str, list[dict[str, HeldOut]]]) -> str:
    """Returns a Markdown table: means after training, the change in ``correct`` with its interval, and the change of each seed."""
    first = next(iter(results.values()))[0]["before"]
    lines = ["| rewards used | " + " | ".join(SHOWN) + " | change in correct | each seed |", "|---" * (len(SHOWN) + 3) + "|"]
    lines.append("| none (before) | " + " | ".join(f"{known_mean(first[s]):.3f}" for s in SHOWN) + " | | |")
    for name, runs in results.items():
        cells = [f"{sum(known_mean(r['after'][s]) for r in runs) / len(runs):.3f}" for s in SHOWN]
        seeds = ", ".join(f"{paired(r['before'], r['after'], 'correct').mean:+.3f}" for r in runs)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {changes(runs, 'correct').text('+')} | {seeds} |")
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Plots the change in ``correct`` and ``plan_right`` with intervals, a row for each reward."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for offset, score, colour in ((0.12, "correct", "#00798c"), (-0.12, "plan_right", "#d1495b")):
        found = [changes(runs, score) for runs in results.values()]
        ends = [[c.mean - c.low for c in found], [c.high - c.mean for c in found]]
        rows = [len(found) - 1 - i + offset for i in range(len(found))]
        axes.errorbar([c.mean for c in found], rows, xerr=ends, fmt="o", color=colour, label=f"change in {score}")
    axes.set_yticks(range(len(results)), list(results)[::-1])
    axes.axvline(0, color="#888", linewidth=1)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("words", nargs="*", help="KEY=VALUE for gotr1 train; without any, the figures are those of the docs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    # The outer loop is over seeds, so that the finished runs compare all rewards at any time.
    done = {(name, seed): run(name, seed, args.out, args.words) for seed in args.seeds for name in REWARDS}
    results = {name: [done[name, seed] for seed in args.seeds] for name in REWARDS}
    text = table(results)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(results, args.out / "plot.svg")
    print(text)


if __name__ == "__main__":
    main()
