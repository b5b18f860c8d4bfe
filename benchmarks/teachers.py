"""Compares reward expressions of the small judge's scores: how well each agrees with the exact judge within a prompt.

    python benchmarks/teachers.py --out build/judge

For each reward, on samples of a policy, four of a prompt: the correlation within prompts of the reward and the exact judge's `correct`,
over all prompts and over those of a category. Advantages compare rewards within a prompt, so this is the cosine of learned and true
advantages.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gotr1_core.plugins import Registry
from gotr1_core.reward import Expression
from gotr1_scenes.judge import ScenesJudge
from gotr1_scenes_recipe.judge import make_judge
from gotr1_scenes_recipe.samples import draw_samples

REWARDS = (
    "pi * (sem + spa) / 2 * ri",
    *("pi", "sem", "spa", "ri"),
    *("pi * sem", "pi**2 * sem", "pi**2 * sem * ri", "pi**2 * (sem + spa) / 2 * ri"),
)
NAMES = ["sem", "spa", "ri", "pi"]


def within(values: Sequence[float], groups: Sequence[int]) -> np.ndarray:
    """Returns differences from the group's mean; 0 for NaN, because such a sample teaches nothing."""
    differences = np.asarray(values, float)
    for group in set(groups):
        members = np.asarray(groups) == group
        differences[members] -= np.nanmean(differences[members])
    return np.nan_to_num(differences)


def cosine(a: np.ndarray, b: np.ndarray) -> str:
    """Returns the cosine of two vectors with two decimals."""
    return f"{(a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewards", nargs="*", default=REWARDS, help="expressions of sem, spa, ri, pi")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps drawn samples")
    parser.add_argument("--model", type=Path, default=Registry().preset("scenes").parent.parent / "weights" / "internvl")
    parser.add_argument("--draw", nargs="+", default=["qwen/sdxl", "janus/janus"], metavar="PLANNER/RENDERER", help="whose samples")
    parser.add_argument("--count", type=int, default=384)
    args = parser.parse_args()
    for pair in args.draw:
        samples = draw_samples(args.out / "check", pair, args.count, split="validation", seed=7)
        groups, kinds = [sample.lineage[0] for sample in samples], np.asarray([sample.prompt.category for sample in samples])
        exact, learned = ScenesJudge(), make_judge(args.model)
        right = within(exact.score(samples, ["correct"])["correct"], groups)
        print(f"\n{len(samples)} samples of {pair}\n\n| reward | all | " + " | ".join(dict.fromkeys(kinds)) + " |")
        print("|---" * (len(set(kinds)) + 2) + "|")
        for whose, judge in (("exact", exact), ("learned", learned)):
            scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in judge.score(samples, NAMES).items()}
            for reward in args.rewards if judge is learned else args.rewards[:1]:
                taught = within(Expression.parse(reward).evaluate(scores).tolist(), groups)
                cells = [cosine(taught, right), *(cosine(taught[kinds == kind], right[kinds == kind]) for kind in dict.fromkeys(kinds))]
                print(f"| {whose} `{reward}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
