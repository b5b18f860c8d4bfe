"""Compares three scores of one judge: the mean over an answer's digits, the most probable digit, and a written verdict with reasons.

    python benchmarks/finer_scores.py --out build/judge

The samples are a policy's, four of a prompt; the judge is the small one of the embedded world. Columns:

- *tied*: among a prompt's pairs that the exact judge distinguishes, the share with equal scores; they teach nothing;
- *right*: share of pairs in the exact judge's order; a tie counts a half;
- *off*: root mean square of the difference from the exact judge;
- *noise*: root mean square change of a score if invisible noise (std 4 of 255) is added to every number of the picture.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_core.plugins import Registry
from gotr1_core.samples import Sample
from gotr1_judges.rubric import RubricJudge
from gotr1_scenes.judge import ScenesJudge
from gotr1_scenes_recipe.judge import make_judge
from gotr1_scenes_recipe.samples import draw_samples
from gotr1_testing.reliability import pair_accuracy

NOISE_STD, COPIES = 4.0, 4


class Written:
    """An answerer that gives all the probability to its most probable word, as if that word had been written."""

    def __init__(self, answerer: Any) -> None:
        self.answerer = answerer

    def word_probabilities(self, questions: Sequence[Any], words: Sequence[str]) -> list[list[float] | None]:
        """Returns for each question the words' total probability at the most probable word, and 0 elsewhere."""
        rows = self.answerer.word_probabilities(questions, words)
        return [None if row is None else [sum(row) * (k == row.index(max(row))) for k in range(len(row))] for row in rows]


def with_noise(sample: Sample, seed: int) -> Sample:
    """Returns the sample with a little Gaussian noise on its picture."""
    assert sample.image is not None
    pixels = np.asarray(sample.image, float) + np.random.default_rng(seed).normal(0, NOISE_STD, (*sample.image.size[::-1], 3))
    return replace(sample, image=Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)))


def rms(values: Sequence[float]) -> float:
    """Returns the root mean square of the values that are not NaN."""
    known = [value for value in values if value == value]
    return math.sqrt(sum(value * value for value in known) / len(known))


def tied(scores: Sequence[float], exact: Sequence[float], groups: Sequence[object]) -> float:
    """Returns the share of equal scores among pairs of a group with different exact scores."""
    pairs = [(i, j) for i in range(len(scores)) for j in range(i) if groups[i] == groups[j] and exact[i] != exact[j]]
    return sum(scores[i] == scores[j] for i, j in pairs) / len(pairs)


def row(name: str, way: str, judge: Any, samples: Sequence[Sample]) -> str:
    """Returns a row of the table: a reward, a way of scoring, and its figures."""
    exact = ScenesJudge().score(samples, [name])[name]
    groups = [sample.lineage[0] for sample in samples]
    scores = judge.score(samples, [name])[name]
    cells = [tied(scores, exact, groups), pair_accuracy(scores, exact, groups)[0], rms([a - b for a, b in zip(scores, exact, strict=True)])]
    noise = "–"
    if name == "pi":
        copies = [judge.score([with_noise(s, 1000 * copy + i) for i, s in enumerate(samples)], [name])[name] for copy in range(COPIES)]
        means = [sum(copy) / COPIES for copy in zip(*copies, strict=True)]
        noise = f"{rms([a - b for copy in copies for a, b in zip(copy, means, strict=True)]) * math.sqrt(COPIES / (COPIES - 1)):.3f}"
    return f"| `{name}` | {way} | " + " | ".join(f"{cell:.3f}" for cell in cells) + f" | {noise} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps drawn samples")
    parser.add_argument("--model", type=Path, default=Registry().preset("scenes").parent.parent / "weights" / "internvl")
    parser.add_argument("--draw", default="janus/janus", metavar="PLANNER/RENDERER", help="whose samples")
    parser.add_argument("--count", type=int, default=384)
    parser.add_argument("--no-verdicts", action="store_true", help="without verdicts with reasons, which take most of the time")
    args = parser.parse_args()
    samples = draw_samples(args.out / "check", args.draw, args.count, split="validation", seed=7)
    verdicts, judge = make_judge(args.model, "text"), make_judge(args.model)
    written = RubricJudge(Written(judge.answerer), judge.rubrics, canvas=judge.canvas, least_mass=judge.least_mass)
    print(f"{len(samples)} samples of {args.draw}\n")
    print("| reward | score | tied | right | off | noise |\n|---|---|---|---|---|---|")
    for name in ("pi", "spa", "sem"):
        for way, scorer in (("the digit written", written), ("expectation", judge), ("description, reasons, score", verdicts)):
            if scorer is verdicts and (args.no_verdicts or verdicts.rubrics[name].kind != "score"):
                continue  # there is no such rubric for `sem`
            print(row(name, way, scorer, samples), flush=True)


if __name__ == "__main__":
    main()
