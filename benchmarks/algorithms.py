"""Compares GRPO and PPO in the embedded world: gain, samples, time and memory. Reads the output of `learning.py`.

    python benchmarks/learning.py --out build/grpo
    python benchmarks/learning.py --out build/ppo -- --algorithm ppo
    python benchmarks/algorithms.py GRPO=build/grpo PPO=build/ppo --out build/algorithms

Writes ``table.md`` and ``plot.svg``: held-out ``correct`` against the samples drawn in training, for each seed and their mean.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib import pyplot as plt

from gotr1_core.config.merge import read_yaml
from gotr1_core.engine.files import read_lines
from gotr1_core.evaluation import HeldOut, paired


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """Returns results, metrics and config of every finished seed."""
    found = []
    for done in sorted(folder.glob("seed-*/benchmark.json")):
        rows = [json.loads(line) for _, line in read_lines(done.parent / "metrics.jsonl", hint="train that seed again")]
        found.append({**json.loads(done.read_text()), "metrics": rows, "config": read_yaml(done.parent / "config.yaml")})
    if not found:
        raise SystemExit(f"{folder} has no finished seeds; run benchmarks/learning.py --out {folder}")
    return found


def curve(run: dict[str, Any], score: str = "correct") -> tuple[list[float], list[float]]:
    """Returns two columns, a row per evaluation: samples drawn in training so far, and a score's mean.

    The mean is over the first held-out prompts, which every evaluation uses.
    """
    config = run["config"]
    each = config["groups"] * config["plans"] * config["images"]
    few = {name: mean(run["rows"][name][score][: config["evaluation"]["prompts"]]) for name in ("before", "after")}
    rows = [row for row in run["metrics"] if row.get("evaluation") in ("before", "held-out", "after")]
    return [each * row["step"] for row in rows], [few.get(row["evaluation"], row[score]) for row in rows]


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Returns a Markdown table with a row for each algorithm, means over its seeds."""
    names = ("samples a step", "steps", "change in correct", "each seed", "seconds a step", "peak GB")
    lines = ["| algorithm | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, runs in results.items():
        config = runs[0]["config"]
        gains = [paired(*(HeldOut.from_json(r["rows"][name]) for name in ("before", "after")), "correct") for r in runs]
        steps = [row["seconds"] for r in runs for row in r["metrics"] if "seconds" in row]
        cells = [
            f"{config['groups']} × {config['plans']} × {config['images']}",
            str(config["steps"]),
            f"{mean([g.mean for g in gains]):+.3f}",
            ", ".join(g.text("+") for g in gains),
            f"{median(steps):.1f}",
            f"{max(r['memory'] for r in runs):.2f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plots each seed as a thin line and the mean over seeds as a thick one."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, runs), colour in zip(results.items(), ("#00798c", "#d1495b", "#edae49"), strict=False):
        curves = [curve(r) for r in runs]
        for drawn, correct in curves:
            axes.plot(drawn, correct, color=colour, alpha=0.25, linewidth=1)
        together = [[mean(list(values)) for values in zip(*axis, strict=True)] for axis in zip(*curves, strict=True)]
        axes.plot(*together, color=colour, linewidth=2, marker="o", markersize=4, label=name)
    axes.set(xlabel="samples drawn in training", ylabel="held-out correct")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, default=Path("build/algorithms"))
    args = parser.parse_args()
    results = {name: runs_of(Path(folder)) for name, _, folder in (word.partition("=") for word in args.folders)}
    args.out.mkdir(parents=True, exist_ok=True)
    text = table(results)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(results, args.out / "plot.svg")
    print(text)


if __name__ == "__main__":
    main()
