"""Shows reward hacking: the planner is rewarded for long by a learned judge's weakest score alone. And shows what prevents it.

    python benchmarks/hacking.py --out build/hacking
    python benchmarks/hacking.py --out build/hacking --only bought --seeds 0   # only some runs; omit both options to write the table

Each run is one of `gotr1 train`, and finished runs are not repeated. Writes ``table.md``: 300 held-out prompts before and after, paired,
and what the doctor reports about the judges. Writes ``plot.svg``: during the run, `spa` by the judge that rewards, and `correct` by the
exact judge, which only observes. ``--second`` is another small judge, for an ensemble of two.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import learning
from algorithms import curve, runs_of
from matplotlib import pyplot as plt

from gotr1_core.config.models import RunConfig, validate
from gotr1_core.doctor.rules import examine_run
from gotr1_core.evaluation import HeldOut, paired
from gotr1_core.plugins import Registry

COMMON = [
    *("--preset", "scenes", "--planner", "qwen", "--renderer", "sdxl", "--judge", "internvl"),
    *("constant_tolerance=0.05", "steps=60", "optimizer.learning_rate=6e-4", "evaluation.every=15"),
]
RUNS = {
    "bought": ["reward=internvl.spa", "segments.plan.kl=0"],
    "KL": ["reward=internvl.spa", "segments.plan.kl=0.1"],
    "other questions": ["reward=internvl.pi**2 * internvl.sem", "segments.plan.kl=0"],
}
ENSEMBLE = "two judges"
SHOWN = ("internvl.spa", "scenes.spa", "plan_right", "correct")


def ensemble(second: Path) -> list[str]:
    """Returns settings in which the lower score of two judges is the reward. Both judges have the preset's settings."""
    home = Registry().preset("scenes").parent.parent
    options = f"name: internvl, rubrics: '{home / 'rubrics'}', scoring: expected, answer_tokens: 192, batch: 64"
    judges = f"{{{options}, model: '{home / 'weights' / 'internvl'}'}}, {{{options}, as: second, model: '{second}'}}, scenes"
    evaluation = ["evaluation.best_of=0", "evaluation.greedy=false"]
    return [f"judge=[{judges}]", "reward=min(internvl.spa, second.spa)", "segments.plan.kl=0", *evaluation]


def doctor_finding(run: dict[str, Any]) -> str:
    """Returns the doctor's finding about a run's judges with the step at which it was first reported, or "nothing"."""
    findings = [f for f in examine_run(run["metrics"], validate(RunConfig, run["config"])) if f.rule.name == "judges part"]
    return f"step {findings[0].step}: {findings[0].metric}" if findings else "nothing"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Returns a Markdown table with a row for each run and seed: each score after the run, and its paired change."""
    lines = ["| run | seed | " + " | ".join(f"`{name}`" for name in SHOWN) + " | the doctor |", "|---" * (len(SHOWN) + 3) + "|"]
    for name, runs in results.items():
        for run in runs:
            before, after = (HeldOut.from_json(run["rows"][name]) for name in ("before", "after"))
            changes = [paired(before, after, score) for score in SHOWN]
            cells = [f"{mean(after[s]):.3f}, {c.text('+')}" for s, c in zip(SHOWN, changes, strict=True)]
            lines.append(f"| {name} | {run['seed']} | " + " | ".join(cells) + f" | {doctor_finding(run)} |")
    return "\n".join(lines)


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plots for every seed the judge's score, and `correct`."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
    for panel, score, what in zip(panels, ("internvl.spa", "correct"), ("which pays", "by the exact judge"), strict=True):
        for (name, runs), colour in zip(results.items(), ("#d1495b", "#00798c", "#edae49", "#66a182"), strict=False):
            for run in runs:
                panel.plot(*curve(run, score), color=colour, label=name if run is runs[0] and panel is panels[0] else None)
        panel.set(xlabel="samples drawn in training", title=f"{score}, {what}")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="60 held-out prompts")
    figure.legend(loc="outside lower center", ncols=len(results), frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/hacking"))
    parser.add_argument("--only", nargs="+", choices=[*RUNS, ENSEMBLE])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--second", type=Path, help="another InternVL made by the recipe, for the run with two judges")
    args = parser.parse_args()
    runs = RUNS if args.second is None else RUNS | {ENSEMBLE: ensemble(args.second.absolute())}
    if not runs.keys() >= {*(args.only or ())}:
        parser.error(f"{ENSEMBLE!r} needs --second")
    results = {}
    for name in args.only or runs:
        folder = args.out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            learning.run(seed, folder, [*COMMON, *runs[name]])
        results[name] = runs_of(folder)
    text = table(results)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(results, args.out / "plot.svg")
    print(text)


if __name__ == "__main__":
    main()
