"""Measures the small judge against what the recipe promises, on samples that it has not seen.

    python -m gotr1_scenes_recipe.check_judge --model plugins/gotr1-scenes/src/gotr1_scenes/weights/internvl --out build/judge

Groups of four samples of a prompt, held out and of training, drawn by a policy (and then kept in ``--out``): the share of pairs within a
group that the judge puts in the exact judge's order, which is to be 0.80 for ``pi``; how far its scores are off; ties; and the mean IoU of
the boxes that it finds with those that the exact reader does, which is to be 0.6.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gotr1_core.chain import iou
from gotr1_core.evaluation import estimate
from gotr1_core.samples import Sample
from gotr1_scenes.judge import ScenesJudge, look_of
from gotr1_scenes.reader import read_things
from gotr1_scenes_recipe.judge import make_judge
from gotr1_scenes_recipe.samples import draw_samples
from gotr1_testing.reliability import pair_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draw", default="janus/janus", metavar="PLANNER/RENDERER", help="whose samples")
    parser.add_argument("--count", type=int, default=768)
    parser.add_argument("--scoring", choices=("expected", "text"), default="expected", help="digits, or written verdicts")
    args = parser.parse_args()
    judge = make_judge(args.model, args.scoring)
    for split in ("validation", "train"):
        samples = draw_samples(args.out / "check", args.draw, args.count, split=split, seed=7)  # training draws those of seed 5
        print(f"{len(samples)} samples of {args.draw}, prompts of {split}")
        for line in agreement(judge, samples):
            print(line, flush=True)
        show("mean IoU of boxes found", located_ious(judge, samples))


def agreement(judge: Any, samples: Sequence[Sample]) -> list[str]:
    """A line for each reward: pair accuracy, mean error, share of tied pairs."""
    names = ["sem", "spa", "ri", "pi"]
    groups = [sample.lineage[0] for sample in samples]
    exact, said = ScenesJudge().score(samples, names), judge.score(samples, names)
    lines = []
    for name in names:
        accuracy, pairs = pair_accuracy(said[name], exact[name], groups)
        known = [abs(a - b) for a, b in zip(said[name], exact[name], strict=True) if a == a]
        lines.append(
            f"{name:<4} pairs right {accuracy:.3f} of {pairs}, off by {estimate(known).mean:.3f}, known {len(known)} of {len(samples)}, "
            f"tied {ties(said[name], groups):.3f} (exact {ties(exact[name], groups):.3f})"
        )
    return lines


def ties(scores: Sequence[float], groups: Sequence[object]) -> float:
    """The share of a group's pairs that have one score."""
    pairs = [(i, j) for i in range(len(scores)) for j in range(i) if groups[i] == groups[j]]
    return sum(scores[i] == scores[j] for i, j in pairs) / len(pairs)


def located_ious(judge: Any, samples: Sequence[Sample]) -> list[float]:
    """For every planned phrase that is in the picture: the best IoU of a box found with one that is there; 0 where none was found."""
    asked = [(s.image, r.phrase) for s in samples if s.image is not None for r in s.chain.regions]
    there = [[_fractions(t.box, image) for t in read_things(image) if look_of(phrase).admits(t.look)] for image, phrase in asked]
    kept = [(pair, boxes) for pair, boxes in zip(asked, there, strict=True) if boxes]
    found = judge.locate([pair for pair, _ in kept])
    return [max((iou(a, b) for a in boxes for b in mine or ()), default=0.0) for (_, boxes), mine in zip(kept, found, strict=True)]


def _fractions(box: Sequence[int], image: Any) -> tuple[float, ...]:
    return tuple(v / (image.height if k % 2 else image.width) for k, v in enumerate(box))


def show(name: str, values: Sequence[float]) -> None:
    """A line with the mean and half of its 95 % interval."""
    print(f"{name:<30} {estimate(values).mean:.3f} ± {estimate(values).half_width:.3f}, {len(values)} of them", flush=True)


if __name__ == "__main__":
    main()
