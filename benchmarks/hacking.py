"""A learned judge is bought: the planner is paid for the judge's weakest score alone, for long. Beside it, the same with a KL term.

    python benchmarks/hacking.py --out build/hacking
    python benchmarks/hacking.py --out build/hacking --only bought   # one of the runs; again without it, and the table is written

Each run is one of `gotr1 train`, and one that is done is not run again. Writes ``table.md`` (300 held-out prompts, before and after, and
what the doctor found first) and ``plot.svg``: over the run, `spa` by the judge that pays, and by the exact one, which only looks on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import learning
from algorithms import curve, runs_of
from matplotlib import pyplot as plt

from gotr1_core.config import RunConfig, validate
from gotr1_core.doctor import examine
from gotr1_core.evaluation import paired

COMMON = [
    *("--preset", "scenes", "--planner", "qwen", "--renderer", "sdxl", "--judge", "internvl"),
    *("reward=internvl.spa", "constant_tolerance=0.05", "steps=120"),
]
RUNS = {"bought": [*COMMON, "segments.plan.kl=0"], "with KL": [*COMMON, "segments.plan.kl=0.1"]}
SHOWN = ("internvl.spa", "scenes.spa", "scenes.sem", "plan_right", "correct")


def found(run: dict[str, Any]) -> str:
    """What the doctor says of a run's judges, and at which step it said so first."""
    told = [f for f in examine(run["metrics"], validate(RunConfig, run["config"])) if f.rule.name == "judges part"]
    return f"step {told[0].step}: {told[0].metric}" if told else "nothing"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row per run, what each score was and by how much it changed, paired."""
    lines = ["| run | " + " | ".join(f"`{name}`" for name in SHOWN) + " | the doctor |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, run in results.items():
        before, after = run["rows"]["before"], run["rows"]["after"]
        changes = [paired(before[score], after[score]) for score in SHOWN]
        cells = [f"{mean(before[s]):.3f} {c.mean:+.3f} ± {c.half_width:.3f}" for s, c in zip(SHOWN, changes, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {found(run)} |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, run), colour in zip(results.items(), ("#d1495b", "#00798c"), strict=False):
        axes.plot(*curve(run, "internvl.spa"), color=colour, linestyle="--", label=f"{name}: the judge that pays")
        axes.plot(*curve(run, "scenes.spa"), color=colour, label=f"{name}: the exact judge")
    axes.set(xlabel="samples drawn in training", ylabel="held-out spa")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/hacking"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    args = parser.parse_args()
    results = {}
    for name in args.only:
        folder = args.out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        learning.run(0, folder, RUNS[name])
        (results[name],) = runs_of(folder)
    text = table(results)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(results, args.out / "plot.svg")
    print(text)


if __name__ == "__main__":
    main()
