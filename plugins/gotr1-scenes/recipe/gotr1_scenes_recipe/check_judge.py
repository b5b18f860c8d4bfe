"""Measures the small judge and compares it with the recipe's targets, on samples that it has not seen.

    python -m gotr1_scenes_recipe.check_judge --model plugins/gotr1-scenes/src/gotr1_scenes/weights/internvl --out build/judge

A policy draws groups of four samples of a prompt, for held-out and for training prompts. They are kept in ``--out``. Printed are:

- the share of pairs within a group that the judge orders like the exact judge; the target for ``pi`` is 0.80;
- the mean error of its scores, and the share of ties;
- the mean IoU of the boxes that it finds with those of the exact reader; the target is 0.6.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gotr1_core.chain import iou
from gotr1_core.engine.intervals import estimate
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
    """Returns a line for each reward: pair accuracy, mean error, share of tied pairs."""
    names = ["sem", "spa", "ri", "pi"]
    groups = [sample.lineage[0] for sample in samples]
    exact, learned = ScenesJudge().score(samples, names), judge.score(samples, names)
    lines = []
    for name in names:
        accuracy, pairs = pair_accuracy(learned[name], exact[name], groups)
        errors = [abs(a - b) for a, b in zip(learned[name], exact[name], strict=True) if a == a]
        lines.append(
            f"{name:<4} pairs right {accuracy:.3f} of {pairs}, off by {estimate(errors).mean:.3f}, known {len(errors)} of {len(samples)}, "
            f"tied {ties(learned[name], groups):.3f} (exact {ties(exact[name], groups):.3f})"
        )
    return lines


def ties(scores: Sequence[float], groups: Sequence[object]) -> float:
    """Returns the share of pairs within a group that have equal scores."""
    pairs = [(i, j) for i in range(len(scores)) for j in range(i) if groups[i] == groups[j]]
    return sum(scores[i] == scores[j] for i, j in pairs) / len(pairs)


def located_ious(judge: Any, samples: Sequence[Sample]) -> list[float]:
    """Returns for each planned phrase that is in the picture the best IoU of a located box with a true one; 0 without a located box."""
    questions = [(s.image, r.phrase) for s in samples if s.image is not None for r in s.chain.regions]
    true_boxes = [[_fractions(t.box, image) for t in read_things(image) if look_of(phrase).admits(t.look)] for image, phrase in questions]
    present = [(pair, boxes) for pair, boxes in zip(questions, true_boxes, strict=True) if boxes]
    located = judge.locate([pair for pair, _ in present])
    return [max((iou(a, b) for a in boxes for b in answer or ()), default=0.0) for (_, boxes), answer in zip(present, located, strict=True)]


def _fractions(box: Sequence[int], image: Any) -> tuple[float, ...]:
    """Converts a box from pixels to fractions of the picture."""
    return tuple(v / (image.height if k % 2 else image.width) for k, v in enumerate(box))


def show(name: str, values: Sequence[float]) -> None:
    """Prints a line with the mean, half the width of its 95 % interval, and the count."""
    print(f"{name:<30} {estimate(values).text()}, {len(values)} of them", flush=True)


if __name__ == "__main__":
    main()
