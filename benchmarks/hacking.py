"""A learned judge is bought: the planner is paid for the judge's weakest score alone, for long. Beside it, the same with a KL term.

    python benchmarks/hacking.py --out build/hacking
    python benchmarks/hacking.py --out build/hacking --only bought   # one of the runs; again without it, and the table is written

Each run is one of `gotr1 train`, and one that is done is not run again. Writes ``table.md`` (300 held-out prompts, before and after, and
what the doctor found first) and ``plot.svg``: over the run, `spa` by the judge that pays, and by the exact one, which only looks on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from learning import run
from matplotlib import pyplot as plt

from gotr1_core.config import RunConfig, validate
from gotr1_core.doctor import examine
from gotr1_core.evaluation import paired
from gotr1_core.layers import read_yaml

COMMON = [
    *("--preset", "scenes", "--planner", "qwen", "--renderer", "sdxl", "--judge", "internvl"),
    *("reward=internvl.spa", "constant_tolerance=0.05", "steps=120"),
]
RUNS = {"bought": [*COMMON, "segments.plan.kl=0"], "with KL": [*COMMON, "segments.plan.kl=0.1"]}
SHOWN = ("internvl.spa", "scenes.spa", "scenes.sem", "plan_right", "correct")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def found(folder: Path) -> str:
    """What the doctor says of a run's judges, and at which step it said so first."""
    config = validate(RunConfig, read_yaml(folder / "config.yaml"))
    told = [finding for finding in examine(metrics(folder), config) if finding.rule.name == "judges part"]
    return f"step {told[0].step}: {told[0].metric}" if told else "nothing"


def curve(result: dict[str, Any], folder: Path, score: str) -> tuple[list[int], list[float]]:
    """Steps, and a score's mean over the held-out prompts that every evaluation draws, the first ones."""
    few = read_yaml(folder / "config.yaml")["evaluation"]["prompts"]
    whole = {name: mean(result["rows"][name][score][:few]) for name in ("before", "after")}
    rows = [row for row in metrics(folder) if row.get("evaluation") in ("before", "held-out", "after")]
    return [row["step"] for row in rows], [whole.get(row["evaluation"], row[score]) for row in rows]


def table(results: dict[str, tuple[dict[str, Any], Path]]) -> str:
    """Markdown: a row per run, what each score was and by how much it changed, paired."""
    lines = ["| run | " + " | ".join(f"`{name}`" for name in SHOWN) + " | the doctor |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, (result, folder) in results.items():
        before, after = result["rows"]["before"], result["rows"]["after"]
        changes = [paired(before[score], after[score]) for score in SHOWN]
        cells = [f"{mean(before[s]):.3f} {c.mean:+.3f} ± {c.half_width:.3f}" for s, c in zip(SHOWN, changes, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {found(folder)} |")
    return "\n".join(lines)


def plot(results: dict[str, tuple[dict[str, Any], Path]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, (result, folder)), colour in zip(results.items(), ("#d1495b", "#00798c"), strict=False):
        axes.plot(*curve(result, folder, "internvl.spa"), color=colour, linestyle="--", label=f"{name}: the judge that pays")
        axes.plot(*curve(result, folder, "scenes.spa"), color=colour, label=f"{name}: the exact judge")
    axes.set(xlabel="step", ylabel="held-out spa")
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
        results[name] = (run(0, folder, RUNS[name]), folder / "seed-0")
    text = table(results)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(results, args.out / "plot.svg")
    print(text)


if __name__ == "__main__":
    main()
