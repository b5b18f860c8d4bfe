"""Checks how far a judge can be trusted: whether it repeats itself, answers, is fast enough, prefers a side or an order, and agrees.

They measure the model behind a judge, not its code. So they are not part of the contract for plugins' tests, and run only in
``gotr1 check judge``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import combinations

from gotr1_core.chain import SCALE, Box
from gotr1_core.samples import Prompt, Sample
from gotr1_testing.check import Check, Measured, NotRun
from gotr1_testing.judges import MAX_DIFFERENCE, JudgeSubject, painted_scene

MIN_READABLE = 0.95
"""Share of scores that must not be NaN. Some rubrics defeat a model now and then; a step in which half of the samples
lack a score stops a run."""
MAX_SECONDS = 5.0
"""For one sample with all its rewards. GoT-R1's 128 samples of a step then take ten minutes."""
MAX_BIAS = 0.15
"""Of a score: more than one step of a verdict out of ten. An exact judge shows 0."""
MIN_AGREEMENT = 0.7
"""Share of pairs in the reference's order. A coin gives one half."""
MIN_MARGIN = 0.05
"""Samples whose reference scores differ by less are not a pair: their order says nothing."""

PAIRS = (("red circle", "blue square"), ("green square", "red circle"), ("blue circle", "green square"))
UPPER, LOWER = (340, 60, 660, 380), (300, 540, 700, 940)
TURNED = {"above": (False, False), "below": (False, True), "to the left of": (True, False), "to the right of": (True, True)}
"""How boxes of "above" become those of another relation: whether to exchange the axes, and then whether to mirror the boxes."""
INVERSE = {"above": "below", "below": "above", "to the left of": "to the right of", "to the right of": "to the left of"}


def repeats_itself(subject: JudgeSubject) -> Measured:
    """Scores the same samples twice."""
    first, second, gap, known = subject.score(), subject.score(), 0.0, 0
    for name, row in first.items():
        for a, b in zip(row, second[name], strict=True):
            known += not math.isnan(a)
            gap = max(gap, 0.0 if math.isnan(a) and math.isnan(b) else math.inf if math.isnan(a - b) else abs(a - b))
    if not known:
        raise NotRun("it could score nothing")
    return Measured(gap, MAX_DIFFERENCE, "largest difference of a score, asked again")


def answers_are_read(subject: JudgeSubject) -> Measured:
    """The share of scores that are not NaN, of samples that lack nothing. They are NaN if an answer cannot be read."""
    scores = subject.score()
    shares = {name: sum(not math.isnan(value) for value in row) / len(row) for name, row in scores.items()}
    worst = min(shares, key=lambda name: shares[name])
    note = f"share of scores that are known ({worst}; " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()) + ")"
    return Measured(shares[worst], MIN_READABLE, note, at_least=True)


def keeps_up(subject: JudgeSubject) -> Measured:
    """Seconds for a sample with all its rewards, in one batch, after one sample to warm up."""
    subject.score(list(subject.samples)[:1])
    samples = [*subject.samples, *subject.samples]
    start = time.perf_counter()
    subject.score(samples)
    return Measured((time.perf_counter() - start) / len(samples), MAX_SECONDS, f"seconds for a sample, {len(samples)} together")


def relation_samples() -> dict[str, list[Sample]]:
    """The same objects in each relation: by relation, for each pair a right sample and one with the objects exchanged."""
    return {relation: [_related(a, b, relation, right=right) for a, b in PAIRS for right in (True, False)] for relation in TURNED}


def _related(a: str, b: str, relation: str, *, right: bool, text: str = "") -> Sample:
    first, second = _boxes(relation)
    objects = [(a, first), (b, second)] if right else [(a, second), (b, first)]
    return painted_scene(Prompt(text or f"a {a} {relation} a {b}"), objects)


def _boxes(relation: str) -> tuple[Box, Box]:
    horizontal, mirrored = TURNED[relation]
    boxes = [(y1, x1, y2, x2) if horizontal else (x1, y1, x2, y2) for x1, y1, x2, y2 in (UPPER, LOWER)]
    return (_mirror(boxes[0], horizontal), _mirror(boxes[1], horizontal)) if mirrored else (boxes[0], boxes[1])


def _mirror(box: Box, horizontal: bool) -> Box:
    x1, y1, x2, y2 = box
    return (SCALE - x2, y1, SCALE - x1, y2) if horizontal else (x1, SCALE - y2, x2, SCALE - y1)


def prefers_no_side(subject: JudgeSubject) -> Measured:
    """Mean scores of the same objects above, below, left and right of one another: the best relation minus the worst."""
    groups = relation_samples()
    scores = subject.score([sample for samples in groups.values() for sample in samples])
    gaps: dict[str, float] = {}
    for name, row in scores.items():
        size = len(row) // len(groups)
        by_relation = [[value for value in row[i * size : (i + 1) * size] if not math.isnan(value)] for i in range(len(groups))]
        if all(by_relation):
            means = [sum(values) / len(values) for values in by_relation]
            gaps[name] = max(means) - min(means)
    return _largest_gap(gaps, "largest difference between relations of a mean score")


def order_pairs() -> list[tuple[Sample, Sample]]:
    """Pairs of samples that differ only in the order in which their prompts name the objects."""
    pairs = []
    for (a, b), (relation, inverse) in zip(PAIRS * 2, [*INVERSE.items(), *INVERSE.items()], strict=False):
        for right in (True, False):
            pairs.append((_related(a, b, relation, right=right), _related(a, b, relation, right=right, text=f"a {b} {inverse} a {a}")))
    for a, b in PAIRS:
        objects = [(a, UPPER), (b, LOWER)]
        pairs.append((painted_scene(Prompt(f"a {a} and a {b}"), objects), painted_scene(Prompt(f"a {b} and a {a}"), objects)))
        pairs.append((painted_scene(Prompt(f"a {a} and a {b}"), objects[:1]), painted_scene(Prompt(f"a {b} and a {a}"), objects[:1])))
    return pairs


def prefers_no_order(subject: JudgeSubject) -> Measured:
    """Mean difference of scores between prompts that mean the same and name the objects in another order."""
    pairs = order_pairs()
    scores = subject.score([sample for pair in pairs for sample in pair])
    gaps: dict[str, float] = {}
    for name, row in scores.items():
        known = [abs(a - b) for a, b in zip(row[::2], row[1::2], strict=True) if not math.isnan(a - b)]
        if known:
            gaps[name] = sum(known) / len(known)
    return _largest_gap(gaps, "mean difference of a score by the order of a prompt's words")


def _largest_gap(gaps: Mapping[str, float], measured: str) -> Measured:
    if not gaps:
        raise NotRun("it could score nothing")
    name = max(gaps, key=lambda n: gaps[n])
    return Measured(gaps[name], MAX_BIAS, f"{measured} ({name}; " + ", ".join(f"{n} {gap:.3f}" for n, gap in gaps.items()) + ")")


def pair_accuracy(scores: Sequence[float], truth: Sequence[float], groups: Sequence[object]) -> tuple[float, int]:
    """The share of pairs within a group that ``scores`` put in the order of ``truth``, and the number of pairs.

    Samples whose truth differs by less than ``MIN_MARGIN`` are not a pair. A pair of equal or unknown scores is half right. Without
    pairs the share is NaN.
    """
    right, count = 0.0, 0
    for i, j in combinations(range(len(scores)), 2):
        true_gap = truth[i] - truth[j]
        if groups[i] != groups[j] or not abs(true_gap) > MIN_MARGIN:
            continue
        gap = scores[i] - scores[j]
        count += 1
        right += 0.5 if math.isnan(gap) or gap == 0 else float((gap > 0) == (true_gap > 0))
    return (right / count if count else math.nan), count


def agrees_with_reference(subject: JudgeSubject) -> Measured:
    """The share of pairs of samples of one prompt that judge and reference put in the same order; of all rewards, the lowest share."""
    if subject.reference is None:
        raise NotRun("there is no judge to compare it with (--reference NAME, or the one of --preset)")
    names = [name for name in subject.names if name in subject.reference.rewards]
    if not names:
        raise NotRun("the judge to compare it with has none of its rewards")
    samples = list(subject.compared or subject.samples)
    groups = [sample.prompt.text for sample in samples]
    scores, truth = subject.score(samples, names), JudgeSubject(subject.reference).score(samples, names)
    accuracies = {name: pair_accuracy(scores[name], truth[name], groups) for name in names}
    known = {name: accuracy for name, (accuracy, pairs) in accuracies.items() if pairs}
    if not known:
        raise NotRun(f"for the judge to compare it with, no two of {len(samples)} samples of a prompt differ")
    listed = ", ".join(f"{name} {accuracy:.2f} of {accuracies[name][1]}" for name, accuracy in known.items())
    return Measured(min(known.values()), MIN_AGREEMENT, f"share of a prompt's pairs in the reference's order ({listed})", at_least=True)


RELIABILITY = (
    Check("repeats-itself", "the same sample gets the same score again", repeats_itself),
    Check("answers-are-read", "samples that lack nothing have scores", answers_are_read),
    Check("keeps-up", "a sample is scored in seconds", keeps_up),
    Check("prefers-no-side", "left and right, above and below get the same scores", prefers_no_side),
    Check("prefers-no-order", "the order in which a prompt names things does not matter", prefers_no_order),
    Check("agrees-with-reference", "it orders samples like a judge that is known to be right", agrees_with_reference),
)
