"""Checks of judges: scores are in [0,1] or NaN, depend on their sample alone, and are declared for the right segment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gotr1_core.border.calls import call_judge, call_score
from gotr1_core.chain import SCALE, Box, Chain, Region, parse
from gotr1_core.protocols import RewardJudge
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample
from gotr1_testing.check import Check, Measured, NotRun

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 96  # pixels
MAX_DIFFERENCE = 0.02
"""Between scores of one sample in different batches. The logits of a network in half precision differ by hundredths, and so may its score.
A judge that compares the samples of a batch is off by tenths. A judge that computes exactly shows 0."""

Scores = Mapping[str, Sequence[float]]


def shape_samples() -> tuple[Sample, ...]:
    """Prompts of one, two and three objects with plans and pictures: right ones, wrong ones, and a malformed plan."""
    red, blue, green = ("red circle", (340, 60, 660, 380)), ("blue square", (300, 540, 700, 940)), ("green square", (20, 620, 240, 840))
    above = Prompt("a red circle above a blue square", "above")
    rows: list[tuple[Prompt, Chain, list[tuple[str, Box]]]] = [
        (above, _plan(red, blue), [red, blue]),
        (above, _plan(("red circle", blue[1]), ("blue square", red[1])), [("red circle", blue[1]), ("blue square", red[1])]),
        (above, _plan(red), [red]),
        (Prompt("a green square", "one"), _plan(green), [green]),
        (Prompt("a green square", "one"), parse("a <|obj_start|>green square"), [blue]),
        (Prompt("a red circle and a green square", "two"), _plan(red, green), []),
    ]
    return tuple(Sample(prompt, chain, _paint(objects), (i, 0, 0)) for i, (prompt, chain, objects) in enumerate(rows))


def painted_scene(prompt: Prompt, objects: Sequence[tuple[str, Box]]) -> Sample:
    """A sample with these objects in plan and picture. An object is a colour with ``circle`` or ``square``, and its box."""
    return Sample(prompt, _plan(*objects), _paint(objects))


def _plan(*objects: tuple[str, Box]) -> Chain:
    pieces: list[str | Region] = []
    for phrase, box in objects:
        pieces += ["and a " if pieces else "a ", Region(phrase, box), " "]
    return Chain.of(pieces)


def _paint(objects: Sequence[tuple[str, Box]]) -> Image:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    for phrase, box in objects:
        color, shape = phrase.split()
        draw = ImageDraw.Draw(picture)
        corners = [round(c * (SIDE - 1) / SCALE) for c in box]
        (draw.ellipse if shape == "circle" else draw.rectangle)(corners, fill=color)
    return picture


@dataclass(frozen=True)
class JudgeSubject:
    """A judge and what it is checked on.

    Attributes:
        judge: the judge.
        samples: what it scores.
        unscorable: by reward, samples whose score must be NaN. Samples without a picture need not be given.
        reference: a judge that is known to be right.
        compared: samples on which both are compared; ``samples`` if there are none.
    """

    judge: RewardJudge
    samples: Sequence[Sample] = field(default_factory=shape_samples)
    unscorable: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    reference: RewardJudge | None = None
    compared: Sequence[Sample] = ()

    @property
    def names(self) -> list[str]:
        """All rewards of the judge."""
        return list(self.judge.rewards)

    def score(self, samples: Sequence[Sample] | None = None, names: Sequence[str] | None = None) -> dict[str, list[float]]:
        """Scores by reward, one per sample, as training asks for them; by default all rewards of :attr:`samples`."""
        samples = self.samples if samples is None else samples
        names = self.names if names is None else names
        return call_judge(self.judge, list(samples), list(names))[0]


def largest_difference(first: Scores, second: Scores) -> float:
    """The largest difference of two scores of a sample. NaN equals NaN, and differs infinitely from a number."""
    gaps = [0.0]
    for name in first:
        for a, b in zip(first[name], second[name], strict=True):
            gaps.append(abs(a - b) if not math.isnan(a) and not math.isnan(b) else (0.0 if math.isnan(a) and math.isnan(b) else math.inf))
    return max(gaps)


def scores_are_in_range(subject: JudgeSubject) -> Measured:
    """Every score is in [0,1] or NaN, and not all are NaN."""
    values = [(v, name) for name, row in subject.score().items() for v in row]
    known = [(v, name) for v, name in values if not math.isnan(v)]
    if not known:
        raise NotRun(f"it could score none of {len(subject.samples)} samples; give it samples of its own")
    outside, name = max((max(v - 1, -v, 0.0), name) for v, name in known)  # also for infinite scores
    note = f"how far outside [0,1]{f' ({name})' if outside else ''}; {len(known)} of {len(values)} scores are known"
    return Measured(outside, 0.0, note)


def same_in_any_order(subject: JudgeSubject) -> Measured:
    """Scores the samples without the judge's words, backwards and in another order."""
    scores = subject.score()
    gap = largest_difference(scores, call_score(subject.judge, list(subject.samples), list(subject.names)))  # without its words
    count = len(subject.samples)
    for order in (list(range(count))[::-1], [*range(1, count, 2), *range(0, count, 2)]):
        reordered = subject.score([subject.samples[i] for i in order])
        gap = max(gap, largest_difference({name: [scores[name][i] for i in order] for name in scores}, reordered))
    return Measured(gap, MAX_DIFFERENCE, "largest difference of a score")


def same_in_any_batch(subject: JudgeSubject) -> Measured:
    """Scores each sample alone, and all of them twice in one batch."""
    scores = subject.score()
    alone = [subject.score([sample]) for sample in subject.samples]
    twice = subject.score([*subject.samples, *subject.samples])
    gaps = [largest_difference(scores, {name: [single[name][0] for single in alone] for name in scores})]
    gaps.append(largest_difference({name: [*row, *row] for name, row in scores.items()}, twice))
    if subject.score([]) != {name: [] for name in scores}:
        return Measured(math.nan, MAX_DIFFERENCE, "for no samples it must return no scores")
    return Measured(max(gaps), MAX_DIFFERENCE, "largest difference of a score")


def same_asked_alone(subject: JudgeSubject) -> Measured:
    """Asks for each reward alone, and for all together."""
    scores = subject.score()
    gaps = {name: largest_difference({name: scores[name]}, subject.score(names=[name])) for name in subject.names}
    name = max(gaps, key=lambda n: gaps[n])
    return Measured(gaps[name], MAX_DIFFERENCE, f"largest difference of a score ({name})")


def leaves_samples_alone(subject: JudgeSubject) -> Measured:
    """Scoring does not change the samples, their pictures, or the lists of samples and names."""
    names = subject.names
    changed = changed_samples(subject.samples, lambda passed: call_score(subject.judge, passed, names))
    return Measured(changed + (names != subject.names), 0.0, "samples, or lists of them, that scoring has changed")


def changed_samples(samples: Sequence[Sample], use: Callable[[list[Sample]], object]) -> int:
    """How many samples ``use`` changes, and one more if it changes the list that it is given."""
    before = [(_bytes(s), deepcopy((s.prompt, s.chain, dict(s.scores), s.reward, s.lineage))) for s in samples]
    passed = list(samples)
    use(passed)
    changed = [
        s
        for s, (pixels, (prompt, chain, scores, reward, lineage)) in zip(samples, before, strict=True)
        if _bytes(s) != pixels
        or (s.prompt, s.chain, s.lineage) != (prompt, chain, lineage)
        or repr((dict(s.scores), s.reward)) != repr((scores, reward))  # NaN is not equal to itself
    ]
    return len(changed) + (len(passed) != len(samples) or any(a is not b for a, b in zip(passed, samples, strict=True)))


def _bytes(sample: Sample) -> tuple[object, ...]:
    return (sample.image.size, sample.image.mode, sample.image.tobytes()) if sample.image is not None else ()


def unknown_is_nan(subject: JudgeSubject) -> Measured:
    """What cannot be scored is NaN, not 0 and not an error: an image reward of a sample without its picture."""
    scores = subject.score()
    rewards = subject.judge.rewards
    cases = {name: [replace(s, image=None) for s in subject.samples] for name in subject.names if rewards[name] == IMAGE}
    cases |= {name: list(samples) for name, samples in subject.unscorable.items()}
    if not cases:
        raise NotRun("all its rewards are the plan's; say what it cannot score (unscorable)")
    wrong = []
    for name, samples in cases.items():
        # A plan may decide a score whatever the picture is: a malformed plan has score 0.
        decided = [name not in subject.unscorable and scores[name][i] == 0 for i in range(len(samples))]
        values = subject.score(samples, [name])[name]
        wrong += [(name, v) for v, by_plan in zip(values, decided, strict=True) if not by_plan and not math.isnan(v)]
    note = "scores that are numbers but must be NaN" + (f": {wrong[0][0]} was {wrong[0][1]:g}" if wrong else "")
    return Measured(len(wrong), 0.0, note)


def plan_rewards_are_blind(subject: JudgeSubject) -> Measured:
    """Rewards declared as the plan's are the same with another picture and without one. All others are declared as the image's."""
    stages = subject.judge.rewards
    undeclared = [name for name, stage in stages.items() if stage not in (PLAN, IMAGE)]
    if undeclared:
        return Measured(math.nan, 0.0, f"{undeclared[0]!r} is declared {stages[undeclared[0]]!r}, not plan or image")
    names = [name for name in subject.names if stages[name] == PLAN]
    if not names:
        raise NotRun("none of its rewards is the plan's")
    scores = subject.score(names=names)
    count = len(subject.samples)
    swapped = [replace(s, image=subject.samples[(i + 1) % count].image) for i, s in enumerate(subject.samples)]
    without = [replace(s, image=None) for s in subject.samples]
    gap = max(largest_difference(scores, subject.score(samples, names)) for samples in (swapped, without))
    return Measured(gap, MAX_DIFFERENCE, f"largest difference of {', '.join(names)}")


JUDGE = (
    Check("scores-are-in-range", "every score is in [0,1], or NaN", scores_are_in_range),
    Check("same-in-any-order", "a score does not depend on the order of samples", same_in_any_order),
    Check("same-in-any-batch", "a score does not depend on the other samples", same_in_any_batch),
    Check("same-asked-alone", "a reward asked for alone is the same as beside others", same_asked_alone),
    Check("leaves-samples-alone", "scoring does not change the caller's samples", leaves_samples_alone),
    Check("unknown-is-nan", "what cannot be scored is NaN, not 0", unknown_is_nan),
    Check("plan-rewards-are-blind", "a reward declared as the plan's does not depend on the picture", plan_rewards_are_blind),
)
