"""The paper's ablation in miniature: which rewards does planning need? Trains the default preset with other reward expressions.

    python benchmarks/ablation.py --out build/ablation

Five rewards x three seeds, a fixed number of steps each, the same held-out prompts and evaluation seeds everywhere, judged exactly. Run
again, it goes on: a run that is done is not repeated, and one that was broken off is resumed. Writes ``table.md`` and ``plot.svg``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gotr1_core.evaluation import estimate, paired

REWARDS = {
    "all": "pi * (sem + spa) / 2 * ri",
    "pi only": "pi",
    "without ri": "pi * (sem + spa) / 2",
    "without sem and spa": "pi * ri",
    "sum instead of product": "(pi + (sem + spa) / 2 + ri) / 3",
}
SHOWN = ("correct", "plan_right", "ri", "pi")
FIXED = ("steps=60", "evaluation.every=0", "evaluation.best_of=0", "evaluation.greedy=false", "save_samples=0")


def run(name: str, seed: int, out: Path, words: list[str]) -> dict[str, dict[str, list[float]]]:
    """Held-out scores before and after one training run, sample by sample."""
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
    return dict(json.loads(rows.read_text()))


def changes(runs: list[dict[str, dict[str, list[float]]]], score: str) -> tuple[float, float]:
    """Mean change over seeds, and the half width of its 95 % interval over prompts (each prompt's change averaged over seeds)."""
    count = len(runs[0]["before"][score])
    before, after = ([sum(r[model][score][i] for r in runs) / len(runs) for i in range(count)] for model in ("before", "after"))
    found = paired(before, after)
    return found.mean, found.half_width


def table(results: dict[str, list[dict[str, dict[str, list[float]]]]]) -> str:
    """Markdown: means after training, and the change in ``correct`` with its interval and every seed's own."""
    first = next(iter(results.values()))[0]["before"]
    lines = ["| rewards used | " + " | ".join(SHOWN) + " | change in correct | each seed |", "|---" * (len(SHOWN) + 3) + "|"]
    lines.append("| none (before) | " + " | ".join(f"{estimate(first[s]).mean:.3f}" for s in SHOWN) + " | | |")
    for name, runs in results.items():
        cells = [f"{sum(estimate(r['after'][s]).mean for r in runs) / len(runs):.3f}" for s in SHOWN]
        mean, half = changes(runs, "correct")
        seeds = ", ".join(f"{paired(r['before']['correct'], r['after']['correct']).mean:+.3f}" for r in runs)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {mean:+.3f} ± {half:.3f} | {seeds} |")
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Change in ``correct`` and ``plan_right`` with intervals, as SVG: a row per reward."""
    scores, width, row, left = ("correct", "plan_right"), 720, 46, 190
    height = row * len(results) + 60
    found = {name: [changes(runs, s) for s in scores] for name, runs in results.items()}
    low = min(0.0, *(m - h for pairs in found.values() for m, h in pairs))
    high = max(0.0, *(m + h for pairs in found.values() for m, h in pairs))

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 30)

    colours = ("#00798c", "#d1495b")
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    parts.append(f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="10" y2="{height - 46}" stroke="#888"/>')
    ticks = [t / 20 for t in range(-20, 21) if low <= t / 20 <= high]
    parts += [f'<text x="{x(t):.1f}" y="{height - 30}" text-anchor="middle" fill="#555">{t:+.2f}</text>' for t in ticks]
    for i, (name, pairs) in enumerate(found.items()):
        y = 20 + i * row
        parts.append(f'<text x="{left - 12}" y="{y + 18}" text-anchor="end">{name}</text>')
        for k, ((mean, half), colour) in enumerate(zip(pairs, colours, strict=True)):
            line = y + 8 + 14 * k
            parts.append(
                f'<line x1="{x(mean - half):.1f}" x2="{x(mean + half):.1f}" y1="{line}" y2="{line}" stroke="{colour}" stroke-width="2"/>'
            )
            parts.append(f'<circle cx="{x(mean):.1f}" cy="{line}" r="4.5" fill="{colour}"/>')
    for k, (score, colour) in enumerate(zip(scores, colours, strict=True)):
        parts.append(f'<circle cx="{left + 150 * k}" cy="{height - 10}" r="4.5" fill="{colour}"/>')
        parts.append(f'<text x="{left + 12 + 150 * k}" y="{height - 6}">change in {score}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("words", nargs="*", help="KEY=VALUE for gotr1 train; none for what the docs state")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    # Seeds outside, so that what is done at any time compares all rewards.
    done = {(name, seed): run(name, seed, args.out, args.words) for seed in args.seeds for name in REWARDS}
    results = {name: [done[name, seed] for seed in args.seeds] for name in REWARDS}
    text = table(results)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(results, args.out / "plot.svg")
    print(text)


if __name__ == "__main__":
    main()
