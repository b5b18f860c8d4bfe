"""Checks of judges: numbers in [0,1] that depend on the sample alone, NaN where there is none, rewards declared as what they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gotr1_core.chain import SCALE, Box, Chain, Region, parse
from gotr1_core.protocols import RewardJudge
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample
from gotr1_testing.finding import Check, Measured, NotRun

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 96  # pixels
SAME = 0.02
"""Scores of one sample in another batch: the logits of a network in half precision differ by hundredths there, and so may its score.
A judge that compares the samples it is given is off by tenths. A judge that computes exactly shows 0."""

Scores = Mapping[str, Sequence[float]]


def scenes() -> tuple[Sample, ...]:
    """Prompts of one, two and three things with their plans and pictures: right ones, wrong ones, and a plan that is malformed."""
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
    return tuple(Sample(prompt, chain, _paint(things), (i, 0, 0)) for i, (prompt, chain, things) in enumerate(rows))


def painted_scene(prompt: Prompt, things: Sequence[tuple[str, Box]]) -> Sample:
    """A sample whose plan and picture have these things, circles or squares of a colour, where it says."""
    return Sample(prompt, _plan(*things), _paint(things))


def _plan(*things: tuple[str, Box]) -> Chain:
    parts: list[str | Region] = []
    for phrase, box in things:
        parts += ["and a " if parts else "a ", Region(phrase, box), " "]
    return Chain.of(parts)


def _paint(things: Sequence[tuple[str, Box]]) -> Image:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    for phrase, box in things:
        color, shape = phrase.split()
        draw = ImageDraw.Draw(picture)
        corners = [round(c * (SIDE - 1) / SCALE) for c in box]
        (draw.ellipse if shape == "circle" else draw.rectangle)(corners, fill=color)
    return picture


@dataclass(frozen=True)
class Court:
    """A judge with samples to score, and samples that it cannot score: by default those whose picture is missing.

    ``reference`` is a judge that is known to be right, with samples to compare both on; the others, if there are none.
    """

    judge: RewardJudge
    samples: Sequence[Sample] = field(default_factory=scenes)
    unscorable: Mapping[str, Sequence[Sample]] = field(default_factory=dict)  # by reward, for more than missing pictures
    reference: RewardJudge | None = None
    compared: Sequence[Sample] = ()

    @property
    def names(self) -> list[str]:
        """Everything it offers."""
        return list(self.judge.rewards)

    def score(self, samples: Sequence[Sample] | None = None, names: Sequence[str] | None = None) -> dict[str, list[float]]:
        """Scores as numbers, checked to be as many as asked for."""
        samples = self.samples if samples is None else samples
        names = self.names if names is None else names
        found = self.judge.score(list(samples), list(names))
        if set(found) != set(names) or any(len(found[name]) != len(samples) for name in names):
            shape = {name: len(values) for name, values in found.items()}
            raise ValueError(f"asked for {', '.join(names)} of {len(samples)} samples it answered with {shape}")
        return {name: [float(v) for v in found[name]] for name in names}


def _apart(one: Scores, other: Scores) -> float:
    """The largest difference; NaN is equal to NaN alone."""
    gaps = [0.0]
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            gaps.append(abs(a - b) if not math.isnan(a) and not math.isnan(b) else (0.0 if math.isnan(a) and math.isnan(b) else math.inf))
    return max(gaps)


def in_range(court: Court) -> Measured:
    """Every score in [0,1], or NaN; and not all NaN."""
    values = [(v, name) for name, row in court.score().items() for v in row]
    known = [(v, name) for v, name in values if not math.isnan(v)]
    if not known:
        raise NotRun(f"it could score none of {len(court.samples)} samples; give it some of its own")
    outside, name = max((max(v - 1, -v, 0.0), name) for v, name in known)  # infinite scores too
    return Measured(outside, 0.0, f"how far outside [0,1]{f' ({name})' if outside else ''}; {len(known)} of {len(values)} scores are known")


def in_any_order(court: Court) -> Measured:
    """The samples backwards and in another order get the scores that they had."""
    whole, gap = court.score(), 0.0
    count = len(court.samples)
    for order in (list(range(count))[::-1], [*range(1, count, 2), *range(0, count, 2)]):
        again = court.score([court.samples[i] for i in order])
        gap = max(gap, _apart({name: [whole[name][i] for i in order] for name in whole}, again))
    return Measured(gap, SAME, "largest difference of a score")


def in_any_batch(court: Court) -> Measured:
    """Each sample alone, and all twice over, get the scores that they had together."""
    whole = court.score()
    alone = [court.score([sample]) for sample in court.samples]
    twice = court.score([*court.samples, *court.samples])
    gaps = [_apart(whole, {name: [one[name][0] for one in alone] for name in whole})]
    gaps.append(_apart({name: [*row, *row] for name, row in whole.items()}, twice))
    if court.score([]) != {name: [] for name in whole}:
        return Measured(math.nan, SAME, "no samples are no scores")
    return Measured(max(gaps), SAME, "largest difference of a score")


def asked_alone(court: Court) -> Measured:
    """A reward asked for alone is what it is beside the others."""
    whole = court.score()
    gaps = {name: _apart({name: whole[name]}, court.score(names=[name])) for name in court.names}
    name = max(gaps, key=lambda n: gaps[n])
    return Measured(gaps[name], SAME, f"largest difference of a score ({name})")


def leaves_samples_alone(court: Court) -> Measured:
    """Samples, pictures and the lists themselves are as they were."""
    samples, names = list(court.samples), court.names
    before = [(_bytes(s), deepcopy((s.prompt, s.chain, dict(s.scores), s.reward, s.lineage))) for s in samples]
    given = list(samples)
    court.judge.score(given, names)
    changed = [
        i
        for i, (s, (pixels, (prompt, chain, scores, reward, lineage))) in enumerate(zip(samples, before, strict=True))
        if _bytes(s) != pixels
        or (s.prompt, s.chain, s.lineage) != (prompt, chain, lineage)
        or repr((dict(s.scores), s.reward)) != repr((scores, reward))  # NaN is not equal to itself
    ]
    moved = len(given) != len(samples) or any(a is not b for a, b in zip(given, samples, strict=True)) or names != court.names
    return Measured(len(changed) + moved, 0.0, "samples, or lists of them, that scoring has changed")


def _bytes(sample: Sample) -> tuple[object, ...]:
    return (sample.image.size, sample.image.mode, sample.image.tobytes()) if sample.image is not None else ()


def unknown_is_nan(court: Court) -> Measured:
    """What cannot be scored is NaN, not 0 and not an error: an image reward of a sample without its picture."""
    known = court.score()
    rows = {name: [replace(s, image=None) for s in court.samples] for name in court.names if court.judge.rewards[name] == IMAGE}
    rows |= {name: list(samples) for name, samples in court.unscorable.items()}
    if not rows:
        raise NotRun("all its rewards are the plan's; say what it cannot score")
    wrong = []
    for name, samples in rows.items():
        # A plan may settle a score whatever the picture is: a malformed one has 0.
        settled = [name not in court.unscorable and known[name][i] == 0 for i in range(len(samples))]
        values = court.score(samples, [name])[name]
        wrong += [(name, v) for v, free in zip(values, settled, strict=True) if not free and not math.isnan(v)]
    note = "scores of what cannot be scored that are numbers" + (f": {wrong[0][0]} was {wrong[0][1]:g}" if wrong else "")
    return Measured(len(wrong), 0.0, note)


def plan_rewards_are_blind(court: Court) -> Measured:
    """Rewards declared the plan's are the same with another picture and without any; others are declared the image's."""
    stages = court.judge.rewards
    undeclared = [name for name, stage in stages.items() if stage not in (PLAN, IMAGE)]
    if undeclared:
        return Measured(math.nan, 0.0, f"{undeclared[0]!r} is declared {stages[undeclared[0]]!r}, and not plan or image")
    names = [name for name in court.names if stages[name] == PLAN]
    if not names:
        raise NotRun("none of its rewards is the plan's")
    whole = court.score(names=names)
    count = len(court.samples)
    others = [replace(s, image=court.samples[(i + 1) % count].image) for i, s in enumerate(court.samples)]
    bare = [replace(s, image=None) for s in court.samples]
    return Measured(max(_apart(whole, court.score(s, names)) for s in (others, bare)), SAME, f"largest difference of {', '.join(names)}")


JUDGE = (
    Check("scores-are-in-range", "every score is in [0,1], or NaN", in_range),
    Check("same-in-any-order", "a score does not depend on the order of samples", in_any_order),
    Check("same-in-any-batch", "a score does not depend on what else is scored", in_any_batch),
    Check("same-asked-alone", "a reward asked for alone is what it is beside others", asked_alone),
    Check("leaves-samples-alone", "scoring changes nothing of the caller's", leaves_samples_alone),
    Check("unknown-is-nan", "what could not be scored is NaN, not 0", unknown_is_nan),
    Check("plan-rewards-are-blind", "a reward declared the plan's does not look at the picture", plan_rewards_are_blind),
)
