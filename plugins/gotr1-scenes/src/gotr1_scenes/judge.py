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
``plan_right``  plan   1 if the regions grant the whole wish and no more and no two boxes overlap, else 0
``correct``     image  1 if the things found grant the whole wish and no more, else 0
==============  =====  ==================================================================================================

A prompt's wish is the one that it carries as metadata, else the one that its text says, see ``understand.py``; without either,
every score is NaN. A malformed chain has ``sem``, ``spa``, ``ri`` and ``plan_right`` 0; a chain without boxes has ``ri`` 0. A picture
that is not there gives NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from gotr1_core.chain import SCALE, Chain
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, SegmentName
from gotr1_scenes.reader import read
from gotr1_scenes.understand import wish_of
from gotr1_scenes.wish import Wish, granted, kept_relations
from gotr1_scenes.world import COLORS, MAX_THINGS, SHAPES, Look, Thing

NAN = float("nan")
MOST = 2 * MAX_THINGS  # candidates tried for a wished thing that stands in a relation; exact where no more were found
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


def largest_sum(table: NDArray[np.float64]) -> float:
    """The largest sum of entries of which no two share a row or a column."""
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum())


def match(wish: Wish, found: Found) -> tuple[float, float]:
    """Agreement of looks and share of relations, both in [0,1], under the assignment whose looks agree most; relations break ties.

    Looks come first: were the sum to decide, a reversed relation could be bought by calling the blue square the red circle.
    """
    if not found.looks:
        return 0.0, 0.0
    count = max(len(wish.things), len(found.looks))
    if not wish.relations:
        return largest_sum(np.array(agreements(wish, found), float).reshape(len(wish.things), len(found.looks))) / count, 1.0
    agreed, kept, _ = assigned(wish, found)
    return agreed / count, kept


def agreements(wish: Wish, found: Found) -> list[list[float]]:
    """How far each found thing is what each wished one says, in [0,1]: a row for each wished one."""
    return [[want.agreement(look) for look in found.looks] for want in wish.things]


def assigned(wish: Wish, found: Found) -> tuple[float, float, tuple[int | None, ...]]:
    """The sum of agreements, the share of relations, and which found thing is whose, under the assignment of :func:`match`.

    Of assignments that are equally good it is the one that takes what is found first.
    """
    table = agreements(wish, found)
    best: tuple[float, float, tuple[int | None, ...]] | None = None
    for given in product(*_candidates(wish, table)):
        taken = [k for k in given if k is not None]
        if len(set(taken)) < len(taken):
            continue
        agreed = sum(row[k] for row, k in zip(table, given, strict=True) if k is not None)
        kept = kept_relations(wish, given, found.boxes)
        if best is None or (round(agreed, 9), kept) > (round(best[0], 9), best[1]):
            best = (agreed, kept, given)
    assert best is not None  # there are as many candidates as things wished for, none among them where too few are found
    return best


def _candidates(wish: Wish, table: Sequence[Sequence[float]]) -> list[list[int | None]]:
    """The found things worth trying for each wished one, best agreement first; none too where there are too few.

    The others take at most all but one of the best ``len(wish.things)``, so a thing in no relation needs no more than these.
    """
    related = {k for _, i, j in wish.relations for k in (i, j)}
    candidates: list[list[int | None]] = []
    for i, row in enumerate(table):
        ranked = sorted(range(len(row)), key=lambda k: -row[k])[: MOST if i in related else len(table)]
        candidates.append([*ranked, None] if len(row) < len(table) else [*ranked])
    return candidates


def overlaps(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Intersection over union ``[len(a), len(b)]`` of every box of ``a`` with every one of ``b``; no box is empty."""
    one, other = np.array(a, float).reshape(-1, 1, 4), np.array(b, float).reshape(1, -1, 4)
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    both = sides.clip(0).prod(-1)
    union = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - both
    return np.asarray(both / union)


def apart(found: Found) -> float:
    """The share of boxes that overlap no other; 0 without boxes."""
    if not found.boxes:
        return 0.0
    touched = (overlaps(found.boxes, found.boxes) > 0).sum(1)
    return float((touched == 1).mean())  # each overlaps itself


def followed(plan: Found, picture: Found) -> float:
    """Mean IoU of planned boxes with found ones of the same look, matched one to one; a missing one counts 0."""
    if not plan.boxes:
        return 0.0
    admitted = np.array([[look.admits(other) for other in picture.looks] for look in plan.looks], bool)
    table = overlaps(plan.boxes, picture.boxes) * admitted.reshape(len(plan.boxes), len(picture.boxes))
    return largest_sum(table) / len(plan.boxes)


def wish_in(prompt: Prompt) -> Wish | None:
    """The wish a prompt carries as metadata, else the one its text says, if it is understood."""
    return Wish.from_metadata(prompt.metadata) if "things" in prompt.metadata else wish_of(prompt.text)


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
        wish = wish_in(sample.prompt)
        if wish is None:
            return dict.fromkeys(names, NAN)
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
