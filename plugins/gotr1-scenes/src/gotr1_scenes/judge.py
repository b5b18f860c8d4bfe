"""Judge ``scenes``: reads the plan and the picture itself, and returns GoT-R1's rewards exactly.

With w the things a prompt wishes for, f those found, and A(w, f) the share of the attributes a wish names that a found
thing has, matched one to one so that the sum is largest:

==============  =====  ==================================================================================================
reward          sees   formula
==============  =====  ==================================================================================================
``sem``         plan   sum A(w, phrase) / max(number wished, number of regions)
``spa``         plan   share of the wished relations that hold between boxes x share of boxes that overlap no other
``ri``          image  mean over regions of the IoU of the planned box with the matching thing found; a missing one counts 0
``pi``          image  sum A(w, thing) / max(number wished, number found) x (1 + share of relations that hold) / 2
``plan_right``  plan   1 if the regions grant the whole wish and no more, else 0
``correct``     image  1 if the things found grant the whole wish and no more, else 0
==============  =====  ==================================================================================================

A malformed chain has ``sem``, ``spa``, ``ri`` and ``plan_right`` 0; a chain without boxes has ``ri`` 0. A prompt that carries no
wish, or a picture that is not there, gives NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from gotr1_core.chain import SCALE, Chain, iou
from gotr1_core.samples import IMAGE, PLAN, Sample, SegmentName
from gotr1_scenes.reader import read
from gotr1_scenes.wish import Wish, assignments, granted, kept_relations
from gotr1_scenes.world import COLORS, MAX_THINGS, SHAPES, Look, Thing

NAN = float("nan")
MOST = 2 * MAX_THINGS  # things of a plan or picture that are matched; what is more than that only counts
REWARDS: dict[str, SegmentName] = {"sem": PLAN, "spa": PLAN, "plan_right": PLAN, "ri": IMAGE, "pi": IMAGE, "correct": IMAGE}


@dataclass(frozen=True)
class Found:
    """Things in a plan or a picture: looks, and boxes in one unit."""

    looks: tuple[Look, ...]
    boxes: tuple[tuple[float, float, float, float], ...]


def look_of(phrase: str) -> Look:
    """The look a phrase names. What it names twice or not at all is unknown, but a thing not called striped is plain."""
    words = phrase.lower().replace(",", " ").split()
    singular = [word[:-2] if word == "crosses" else word.removesuffix("s") if word != "cross" else word for word in words]
    shapes = [word for word in singular if word in SHAPES]
    colors = [word for word in words if word in COLORS]
    return Look(
        shapes[0] if len(shapes) == 1 else None,
        colors[0] if len(colors) == 1 else None,
        "striped" if "striped" in words else "plain",
    )


def planned(chain: Chain) -> Found:
    """The regions of a chain, boxes as fractions of the canvas."""
    boxes = [(r.box[0] / SCALE, r.box[1] / SCALE, r.box[2] / SCALE, r.box[3] / SCALE) for r in chain.regions]
    return Found(tuple(look_of(r.phrase) for r in chain.regions), tuple(boxes))


def seen(things: Sequence[Thing], size: tuple[int, int]) -> Found:
    """Things found in a picture of ``size``, boxes as fractions of the canvas."""
    width, height = size
    boxes = [(t.box[0] / width, t.box[1] / height, t.box[2] / width, t.box[3] / height) for t in things]
    return Found(tuple(t.look for t in things), tuple(boxes))


def match(wish: Wish, found: Found) -> tuple[float, float]:
    """Agreement of looks and share of relations, both in [0,1], under the assignment that makes their sum largest."""
    count = max(len(wish.things), len(found.looks))
    if not found.looks:
        return 0.0, 0.0
    best = (0.0, 0.0)
    for given in assignments(wish, min(len(found.looks), MOST)):
        agreed = sum(want.agreement(found.looks[k]) for want, k in zip(wish.things, given, strict=True) if k is not None)
        score = (agreed / count, kept_relations(wish, given, found.boxes))
        best = max(best, score, key=lambda s: (sum(s), s[0]))
    return best


def apart(found: Found) -> float:
    """The share of boxes that overlap no other; 0 without boxes."""
    if not found.boxes:
        return 0.0
    alone = [all(iou(a, b) == 0 for j, b in enumerate(found.boxes) if j != i) for i, a in enumerate(found.boxes)]
    return sum(alone) / len(alone)


def followed(plan: Found, picture: Found) -> float:
    """Mean IoU of planned boxes with found ones of the same look, matched one to one; a missing one counts 0."""
    if not plan.boxes:
        return 0.0
    overlap = [
        [iou(box, other) if look.admits(seen_look) else 0.0 for other, seen_look in zip(picture.boxes, picture.looks, strict=True)][:MOST]
        for look, box in zip(plan.looks, plan.boxes, strict=True)
    ]
    few, many = overlap[:MOST], len(overlap[0])
    slots: list[int | None] = [*range(many)] + [None] * max(0, len(few) - many)
    best = max(sum(row[k] for row, k in zip(few, given, strict=True) if k is not None) for given in permutations(slots, len(few)))
    return best / len(overlap)


class ScenesJudge:
    """The exact judge of the embedded world."""

    rewards: Mapping[str, SegmentName] = REWARDS

    def __init__(self, options: None = None) -> None:
        del options

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """See the module's table; every score in [0,1], NaN where it could not be had."""
        rows = [self._one(sample, names) for sample in samples]
        return {name: [row[name] for row in rows] for name in names}

    def _one(self, sample: Sample, names: Sequence[str]) -> dict[str, float]:
        if "things" not in sample.prompt.metadata:
            return dict.fromkeys(names, NAN)
        wish = Wish.from_metadata(sample.prompt.metadata)
        plan = planned(sample.chain) if sample.chain.well_formed else Found((), ())
        scores = dict.fromkeys(REWARDS, NAN)
        agreed, kept = match(wish, plan)
        scores["sem"], scores["spa"] = agreed, kept * apart(plan)
        scores["plan_right"] = float(granted(wish, plan.looks, plan.boxes) and apart(plan) == 1)
        if any(REWARDS[name] == IMAGE for name in names) and sample.image is not None:
            picture = seen(read(sample.image), sample.image.size)
            agreed, kept = match(wish, picture)
            scores["pi"] = agreed * (1 + kept) / 2
            scores["ri"] = followed(plan, picture)
            scores["correct"] = float(granted(wish, picture.looks, picture.boxes))
        return {name: scores[name] for name in names}
