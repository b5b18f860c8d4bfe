"""What the expectation over an answer's digits is worth, beside the digit that the same model would write, and a verdict with reasons.

    python benchmarks/finer_scores.py --out build/judge

On samples of a policy, four of a prompt, with the small judge of the embedded world. *Tied*: of a prompt's pairs that the exact
judge tells apart, those that have one score, and teach nothing. *Right*: pairs in the exact judge's order, a tie counts a half.
*Off*: root mean square of the difference from the exact judge. *Noise*: how far a score moves, root mean square, when every number of the
picture is changed by a random amount that nobody sees (a deviation of 4 of 255).
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

DEVIATION, COPIES = 4.0, 4


class Written:
    """An answerer whose answers are certain: the word that is most probable is all that is seen of it, as if it had been written."""

    def __init__(self, answerer: Any) -> None:
        self.answerer = answerer

    def word_probabilities(self, questions: Sequence[Any], words: Sequence[str]) -> list[list[float] | None]:
        told = self.answerer.word_probabilities(questions, words)
        return [None if masses is None else [sum(masses) * (k == masses.index(max(masses))) for k in range(len(masses))] for masses in told]


def grainy(sample: Sample, seed: int) -> Sample:
    """The sample with a picture whose numbers are a little others."""
    assert sample.image is not None
    pixels = np.asarray(sample.image, float) + np.random.default_rng(seed).normal(0, DEVIATION, (*sample.image.size[::-1], 3))
    return replace(sample, image=Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)))


def rms(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return math.sqrt(sum(value * value for value in known) / len(known))


def tied(scores: Sequence[float], exact: Sequence[float], groups: Sequence[object]) -> float:
    """Of pairs of a group that are not the same, those that have one score."""
    pairs = [(i, j) for i in range(len(scores)) for j in range(i) if groups[i] == groups[j] and exact[i] != exact[j]]
    return sum(scores[i] == scores[j] for i, j in pairs) / len(pairs)


def row(name: str, way: str, judge: Any, samples: Sequence[Sample]) -> str:
    exact = ScenesJudge().score(samples, [name])[name]
    groups = [sample.lineage[0] for sample in samples]
    said = judge.score(samples, [name])[name]
    cells = [tied(said, exact, groups), pair_accuracy(said, exact, groups)[0], rms([a - b for a, b in zip(said, exact, strict=True)])]
    noise = "–"
    if name == "pi":
        copies = [judge.score([grainy(s, 1000 * copy + i) for i, s in enumerate(samples)], [name])[name] for copy in range(COPIES)]
        middles = [sum(scores) / COPIES for scores in zip(*copies, strict=True)]
        noise = f"{rms([a - b for scores in copies for a, b in zip(scores, middles, strict=True)]) * math.sqrt(COPIES / (COPIES - 1)):.3f}"
    return f"| `{name}` | {way} | " + " | ".join(f"{cell:.3f}" for cell in cells) + f" | {noise} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where drawn samples are kept")
    parser.add_argument("--model", type=Path, default=Registry().preset("scenes").parent.parent / "weights" / "internvl")
    parser.add_argument("--draw", default="janus/janus", metavar="PLANNER/RENDERER", help="whose samples")
    parser.add_argument("--count", type=int, default=384)
    parser.add_argument("--no-verdicts", action="store_true", help="leave out the verdicts with reasons, which take most of the time")
    args = parser.parse_args()
    samples = draw_samples(args.out / "check", args.draw, args.count, split="validation", seed=7)
    verdicts, judge = make_judge(args.model, "text"), make_judge(args.model)
    written = RubricJudge(Written(judge.answerer), judge.rubrics, canvas=judge.canvas, least_mass=judge.least_mass)
    print(f"{len(samples)} samples of {args.draw}\n")
    print("| reward | score | tied | right | off | noise |\n|---|---|---|---|---|---|")
    for name in ("pi", "spa", "sem"):
        for way, one in (("the digit written", written), ("expectation", judge), ("description, reasons, score", verdicts)):
            if one is verdicts and (args.no_verdicts or verdicts.rubrics[name].kind != "score"):
                continue  # of `sem` it has no such rubric
            print(row(name, way, one, samples), flush=True)


if __name__ == "__main__":
    main()
