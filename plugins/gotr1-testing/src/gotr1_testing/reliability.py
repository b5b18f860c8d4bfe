"""How far a judge can be trusted, beyond what every judge must do: does it repeat itself, answer, keep up, prefer a side, agree?

What these find is a property of the model behind a judge, and no mistake of its code. So they are no part of the contract for plugins'
tests, and run in ``gotr1 check judge`` alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import combinations

from gotr1_core.chain import SCALE, Box
from gotr1_core.samples import Prompt, Sample
from gotr1_testing.finding import Check, Measured, NotRun
from gotr1_testing.judges import SAME, Court, painted_scene

READ = 0.95
"""Share of scores that must be known. Some rubrics defeat a model now and then; a step in which half lack a score stops a run."""
SECONDS = 5.0
"""For one sample, all its rewards. GoT-R1's 128 samples of a step then take ten minutes."""
BIAS = 0.15
"""Of a score: more than one step of a verdict out of ten. An exact judge shows 0."""
AGREEMENT = 0.7
"""Share of pairs in the reference's order; a coin has a half."""
MARGIN = 0.05
"""Samples whose reference scores differ by less are no pair: their order says nothing."""

PAIRS = (("red circle", "blue square"), ("green square", "red circle"), ("blue circle", "green square"))
UPPER, LOWER = (340, 60, 660, 380), (300, 540, 700, 940)
TURNED = {"above": (False, False), "below": (False, True), "to the left of": (True, False), "to the right of": (True, True)}
"""How boxes of "above" become those of another relation: axes exchanged, and then the first thing put where the second was."""
INVERSE = {"above": "below", "below": "above", "to the left of": "to the right of", "to the right of": "to the left of"}


def repeats(court: Court) -> Measured:
    """The same samples get the same scores again."""
    first, again, gap, known = court.score(), court.score(), 0.0, 0
    for name, row in first.items():
        for one, other in zip(row, again[name], strict=True):
            known += not math.isnan(one)
            gap = max(gap, 0.0 if math.isnan(one) and math.isnan(other) else math.inf if math.isnan(one - other) else abs(one - other))
    if not known:
        raise NotRun("it could score nothing")
    return Measured(gap, SAME, "largest difference of a score, asked again")


def is_read(court: Court) -> Measured:
    """Its answers can be read: the share of scores that are known, of samples that have everything."""
    rows = court.score()
    shares = {name: sum(not math.isnan(value) for value in row) / len(row) for name, row in rows.items()}
    worst = min(shares, key=lambda name: shares[name])
    note = f"share of scores that are known ({worst}; " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()) + ")"
    return Measured(shares[worst], READ, note, at_least=True)


def keeps_up(court: Court) -> Measured:
    """Seconds for a sample with all its rewards, in one batch, after it was asked once."""
    court.score(list(court.samples)[:1])
    samples = [*court.samples, *court.samples]
    begun = time.perf_counter()
    court.score(samples)
    return Measured((time.perf_counter() - begun) / len(samples), SECONDS, f"seconds for a sample, {len(samples)} together")


def directions() -> dict[str, list[Sample]]:
    """The same things in each relation, by its words: for each pair a sample that is right, and one that is the other way round."""
    return {relation: [_related(a, b, relation, right=right) for a, b in PAIRS for right in (True, False)] for relation in TURNED}


def _related(a: str, b: str, relation: str, *, right: bool, text: str = "") -> Sample:
    first, second = _boxes(relation)
    things = [(a, first), (b, second)] if right else [(a, second), (b, first)]
    return painted_scene(Prompt(text or f"a {a} {relation} a {b}"), things)


def _boxes(relation: str) -> tuple[Box, Box]:
    across, swapped = TURNED[relation]
    boxes = [(y1, x1, y2, x2) if across else (x1, y1, x2, y2) for x1, y1, x2, y2 in (UPPER, LOWER)]
    return (_mirrored(boxes[0], across), _mirrored(boxes[1], across)) if swapped else (boxes[0], boxes[1])


def _mirrored(box: Box, across: bool) -> Box:
    x1, y1, x2, y2 = box
    return (SCALE - x2, y1, SCALE - x1, y2) if across else (x1, SCALE - y2, x2, SCALE - y1)


def prefers_no_side(court: Court) -> Measured:
    """Mean scores of the same things above, below, left and right of one another: how far the best and the worst relation are apart."""
    groups = directions()
    scores = court.score([sample for samples in groups.values() for sample in samples])
    gaps: dict[str, float] = {}
    for name, row in scores.items():
        size = len(row) // len(groups)
        parts = [[value for value in row[i * size : (i + 1) * size] if not math.isnan(value)] for i in range(len(groups))]
        if all(parts):
            means = [sum(part) / len(part) for part in parts]
            gaps[name] = max(means) - min(means)
    return _largest(gaps, "largest difference between relations of a mean score")


def order_pairs() -> list[tuple[Sample, Sample]]:
    """Samples that differ in nothing but the order in which their prompts name things."""
    found = []
    for (a, b), (relation, inverse) in zip(PAIRS * 2, [*INVERSE.items(), *INVERSE.items()], strict=False):
        for right in (True, False):
            found.append((_related(a, b, relation, right=right), _related(a, b, relation, right=right, text=f"a {b} {inverse} a {a}")))
    for a, b in PAIRS:
        things = [(a, UPPER), (b, LOWER)]
        found.append((painted_scene(Prompt(f"a {a} and a {b}"), things), painted_scene(Prompt(f"a {b} and a {a}"), things)))
        found.append((painted_scene(Prompt(f"a {a} and a {b}"), things[:1]), painted_scene(Prompt(f"a {b} and a {a}"), things[:1])))
    return found


def prefers_no_order(court: Court) -> Measured:
    """Mean difference of scores between prompts that say the same in another order."""
    pairs = order_pairs()
    scores = court.score([sample for pair in pairs for sample in pair])
    gaps: dict[str, float] = {}
    for name, row in scores.items():
        known = [abs(one - other) for one, other in zip(row[::2], row[1::2], strict=True) if not math.isnan(one - other)]
        if known:
            gaps[name] = sum(known) / len(known)
    return _largest(gaps, "mean difference of a score by the order of a prompt's words")


def _largest(gaps: Mapping[str, float], what: str) -> Measured:
    if not gaps:
        raise NotRun("it could score nothing")
    name = max(gaps, key=lambda n: gaps[n])
    return Measured(gaps[name], BIAS, f"{what} ({name}; " + ", ".join(f"{n} {gap:.3f}" for n, gap in gaps.items()) + ")")


def pair_accuracy(scores: Sequence[float], truth: Sequence[float], groups: Sequence[object]) -> tuple[float, int]:
    """The share of pairs within a group that ``scores`` put in the order of ``truth``, and how many pairs there are.

    A pair whose truth differs by less than ``MARGIN`` is none; one that the scores tie, or do not know, is half right. NaN without pairs.
    """
    right, count = 0.0, 0
    for i, j in combinations(range(len(scores)), 2):
        better = truth[i] - truth[j]
        if groups[i] != groups[j] or not abs(better) > MARGIN:
            continue
        said = scores[i] - scores[j]
        count += 1
        right += 0.5 if math.isnan(said) or said == 0 else float((said > 0) == (better > 0))
    return (right / count if count else math.nan), count


def agrees(court: Court) -> Measured:
    """Within prompts, it puts samples in the order in which a judge does that is known to be right."""
    if court.reference is None:
        raise NotRun("there is no judge to compare it with (--reference NAME, or the one of --preset)")
    names = [name for name in court.names if name in court.reference.rewards]
    if not names:
        raise NotRun("the judge to compare it with offers none of its rewards")
    samples = list(court.compared or court.samples)
    groups = [sample.prompt.text for sample in samples]
    mine, truth = court.score(samples, names), Court(court.reference).score(samples, names)
    found = {name: pair_accuracy(mine[name], truth[name], groups) for name in names}
    known = {name: accuracy for name, (accuracy, pairs) in found.items() if pairs}
    if not known:
        raise NotRun(f"no two of {len(samples)} samples of a prompt differ to the judge to compare it with")
    told = ", ".join(f"{name} {accuracy:.2f} of {found[name][1]}" for name, accuracy in known.items())
    return Measured(min(known.values()), AGREEMENT, f"share of a prompt's pairs in the reference's order ({told})", at_least=True)


RELIABILITY = (
    Check("repeats-itself", "the same sample gets the same score again", repeats),
    Check("answers-are-read", "it has scores for samples that lack nothing", is_read),
    Check("keeps-up", "a sample is scored in seconds", keeps_up),
    Check("prefers-no-side", "left and right, above and below are judged alike", prefers_no_side),
    Check("prefers-no-order", "the order in which a prompt names things does not matter", prefers_no_order),
    Check("agrees-with-reference", "it orders samples as a judge does that is known to be right", agrees),
)
