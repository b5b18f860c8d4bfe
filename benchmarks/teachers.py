"""Which reward made of the small judge's scores tells what is right, and about what: how far a policy's samples can be learnt from.

    python benchmarks/teachers.py --out build/judge

Per reward, on samples of a policy, four of a prompt: the correlation within prompts between the reward and the exact judge's `correct`,
over all prompts and over those of a category. Advantages are rewards within a prompt: this is the cosine of what is taught and the truth.
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
    """Differences from the group's mean; 0 where there is no value, as such a sample teaches nothing."""
    left = np.asarray(values, float)
    for group in set(groups):
        mine = np.asarray(groups) == group
        left[mine] -= np.nanmean(left[mine])
    return np.nan_to_num(left)


def cosine(one: np.ndarray, other: np.ndarray) -> str:
    return f"{(one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewards", nargs="*", default=REWARDS, help="expressions of sem, spa, ri, pi")
    parser.add_argument("--out", type=Path, required=True, help="where drawn samples are kept")
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
