"""Judge ``scenes``: reads plan and picture itself, and computes GoT-R1's rewards exactly.

w are the things that a prompt wishes for, f the things found. A(w, f) is the share of the attributes named for w that f has,
in [0,1]. Things are matched one to one so that the sum of A is largest:

==============  =====  ==================================================================================================
reward          sees   formula
==============  =====  ==================================================================================================
``sem``         plan   sum A(w, phrase) / max(number wished, number of regions)
``spa``         plan   share of the wished relations that hold between boxes x share of boxes that overlap no other
``ri``          image  mean over regions of the IoU of the planned box with the matching thing found; a missing thing counts 0
``pi``          image  sum A(w, thing) / max(number wished, number found) x (1 + share of relations that hold) / 2
``plan_right``  plan   1 if the regions are exactly what is wished and no two boxes overlap, else 0
``correct``     image  1 if the things found are exactly what is wished, else 0
==============  =====  ==================================================================================================

A prompt's wish is in its metadata; else it is read from the text, see ``understand.py``. Without a wish every score is NaN. A malformed
chain has ``sem``, ``spa``, ``ri`` and ``plan_right`` 0. A chain without boxes has ``ri`` 0; where no chain is known, it is NaN. Without a
picture its scores are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from gotr1_core.chain import SCALE, Chain
from gotr1_core.data.pictures import shrink
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, SegmentName, Words
from gotr1_scenes.language import listing, noun
from gotr1_scenes.reader import read_things
from gotr1_scenes.understand import read_wish
from gotr1_scenes.wish import Wish, granted, kept_relations
from gotr1_scenes.world import COLORS, MAX_THINGS, SHAPES, Look, Thing

NAN = float("nan")
LARGEST_SIDE = 1024  # pixels; a larger picture is shrunk to it first, which keeps time and memory in bounds
MAX_CANDIDATES = 2 * MAX_THINGS  # tried for a wished thing that has a relation; exact if no more things were found
REWARDS: dict[str, SegmentName] = {"sem": PLAN, "spa": PLAN, "plan_right": PLAN, "ri": IMAGE, "pi": IMAGE, "correct": IMAGE}


@dataclass(frozen=True)
class SceneLayout:
    """The things in a plan or a picture: their looks, and their boxes (x1, y1, x2, y2) in one unit."""

    looks: tuple[Look, ...]
    boxes: tuple[tuple[float, float, float, float], ...]


def look_of(phrase: str) -> Look:
    """Returns the look that a phrase names. A colour or shape is None if it is named twice or not at all.

    A thing that is not called striped is plain.
    """
    words = phrase.lower().replace(",", " ").split()
    singular = [word[:-2] if word == "crosses" else word.removesuffix("s") if word != "cross" else word for word in words]
    shapes = [word for word in singular if word in SHAPES]
    colors = [word for word in words if word in COLORS]
    return Look(
        shapes[0] if len(shapes) == 1 else None,
        colors[0] if len(colors) == 1 else None,
        "striped" if "striped" in words else "plain",
    )


def plan_layout(chain: Chain) -> SceneLayout:
    """Returns the layout of a chain's regions, boxes in fractions of the canvas."""
    boxes = [(r.box[0] / SCALE, r.box[1] / SCALE, r.box[2] / SCALE, r.box[3] / SCALE) for r in chain.regions]
    return SceneLayout(tuple(look_of(r.phrase) for r in chain.regions), tuple(boxes))


def picture_layout(things: Sequence[Thing], size: tuple[int, int]) -> SceneLayout:
    """Returns the layout of things read from a picture of ``size`` (width, height), boxes in fractions of the canvas."""
    width, height = size
    boxes = [(t.box[0] / width, t.box[1] / height, t.box[2] / width, t.box[3] / height) for t in things]
    return SceneLayout(tuple(t.look for t in things), tuple(boxes))


def largest_sum(table: NDArray[np.float64]) -> float:
    """Returns the largest sum of entries of a table ``[rows, columns]`` of which no two share a row or a column."""
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum())


def match(wish: Wish, layout: SceneLayout) -> tuple[float, float]:
    """Returns agreement of looks and share of relations that hold, both in [0,1], under the best assignment.

    The best assignment is the one whose looks agree most. Relations only break ties. If their sum decided, a reversed relation could be
    repaired by taking the blue square for the red circle.
    """
    if not layout.looks:
        return 0.0, 0.0
    count = max(len(wish.things), len(layout.looks))
    if not wish.relations:
        return largest_sum(np.array(agreement_table(wish, layout), float).reshape(len(wish.things), len(layout.looks))) / count, 1.0
    agreed, kept, _ = best_assignment(wish, layout)
    return agreed / count, kept


def agreement_table(wish: Wish, layout: SceneLayout) -> list[list[float]]:
    """Returns the agreement, in [0,1], of each found thing (columns) with each wished one (rows)."""
    return [[wished.agreement(look) for look in layout.looks] for wished in wish.things]


def best_assignment(wish: Wish, layout: SceneLayout) -> tuple[float, float, tuple[int | None, ...]]:
    """Returns the best assignment, see :func:`match`: its sum of agreements, its share of relations, and the assignment itself.

    The assignment has for each wished thing the index of the found thing, or None. Of equally good ones it is the first, in the order of
    the candidates.
    """
    table = agreement_table(wish, layout)
    best: tuple[float, float, tuple[int | None, ...]] | None = None
    for assignment in product(*_candidates(wish, table)):
        taken = [k for k in assignment if k is not None]
        if len(set(taken)) < len(taken):
            continue
        agreed = sum(row[k] for row, k in zip(table, assignment, strict=True) if k is not None)
        kept = kept_relations(wish, assignment, layout.boxes)
        if best is None or (round(agreed, 9), kept) > (round(best[0], 9), best[1]):
            best = (agreed, kept, assignment)
    assert best is not None  # each wished thing has enough candidates: None is one of them if too few things were found
    return best


def _candidates(wish: Wish, table: Sequence[Sequence[float]]) -> list[list[int | None]]:
    """Returns for each wished thing the found things to try, best agreement first, and None if too few were found.

    A wished thing without a relation needs only the best ``len(wish.things)``: the other wished things take at most all but one of them.
    """
    related = {k for _, i, j in wish.relations for k in (i, j)}
    candidates: list[list[int | None]] = []
    for i, row in enumerate(table):
        ranked = sorted(range(len(row)), key=lambda k: -row[k])[: MAX_CANDIDATES if i in related else len(table)]
        candidates.append([*ranked, None] if len(row) < len(table) else [*ranked])
    return candidates


def iou_table(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Returns the intersection over union ``[len(a), len(b)]`` of every box of ``a`` with every box of ``b``. No box may be empty."""
    first, second = np.array(a, float).reshape(-1, 1, 4), np.array(b, float).reshape(1, -1, 4)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = sides.clip(0).prod(-1)
    union = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - intersection
    return np.asarray(intersection / union)


def separate_share(layout: SceneLayout) -> float:
    """Returns the share of boxes that overlap no other, in [0,1]; 0 without boxes."""
    if not layout.boxes:
        return 0.0
    overlapping = (iou_table(layout.boxes, layout.boxes) > 0).sum(1)
    return float((overlapping == 1).mean())  # each box overlaps itself


def plan_picture_iou(plan: SceneLayout, picture: SceneLayout) -> float:
    """Returns the mean IoU of planned boxes with found boxes of the same look, matched one to one, in [0,1]. A missing box counts 0."""
    if not plan.boxes:
        return 0.0
    admitted = np.array([[look.admits(other) for other in picture.looks] for look in plan.looks], bool)
    table = iou_table(plan.boxes, picture.boxes) * admitted.reshape(len(plan.boxes), len(picture.boxes))
    return largest_sum(table) / len(plan.boxes)


def found_words(picture: SceneLayout) -> Words:
    """Returns what was found in a picture, in words and as boxes by phrase."""
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    for look, box in zip(picture.looks, picture.boxes, strict=True):
        boxes.setdefault(noun(look, article=False), []).append(box)
    return Words(reason=f"found {listing([noun(look) for look in picture.looks]) if picture.looks else 'nothing'}", boxes=boxes)


def prompt_wish(prompt: Prompt) -> Wish | None:
    """Returns the wish in a prompt's metadata, else the wish of its text, or None if the text is not understood."""
    return Wish.from_metadata(prompt.metadata) if "things" in prompt.metadata else read_wish(prompt.text)


class ScenesJudge:
    """The exact judge of the embedded world."""

    rewards: Mapping[str, SegmentName] = REWARDS

    def __init__(self, options: None = None) -> None:
        del options

    @staticmethod
    def can_score(options: None, prompts: Sequence[Prompt]) -> list[bool]:
        """Returns for each prompt whether its wish is known: from its metadata, or because its text is understood."""
        del options
        return [prompt_wish(prompt) is not None for prompt in prompts]

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """Returns scores in [0,1], see the module's table; NaN without a wish or a picture."""
        return self.score_with_words(samples, names)[0]

    def score_with_words(self, samples: Sequence[Sample], names: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, list[Words]]]:
        """Returns scores as :meth:`score` does, and by name what was found in each picture, or why there is no score."""
        rows = [self._judge(sample, names) for sample in samples]
        words = {name: [found if REWARDS[name] == IMAGE else said for _, said, found in rows] for name in names}
        return {name: [scores[name] for scores, _, _ in rows] for name in names}, words

    def _judge(self, sample: Sample, names: Sequence[str]) -> tuple[dict[str, float], Words, Words]:
        """Returns a sample's scores, and the words about its plan and about its picture."""
        wish = prompt_wish(sample.prompt)
        if wish is None:
            unknown = Words(problem="the prompt is not understood")
            return dict.fromkeys(names, NAN), unknown, unknown
        plan = plan_layout(sample.chain) if sample.chain.well_formed else SceneLayout((), ())
        scores = dict.fromkeys(REWARDS, NAN)
        agreed, kept = match(wish, plan)
        scores["sem"], scores["spa"] = agreed, kept * separate_share(plan)
        scores["plan_right"] = float(granted(wish, plan.looks, plan.boxes) and separate_share(plan) == 1)
        said, found = Words(reason="" if sample.chain.well_formed else "the plan is malformed"), Words(problem="there is no picture")
        if any(REWARDS[name] == IMAGE for name in names) and sample.image is not None:
            image = shrink(sample.image, LARGEST_SIDE)
            picture = picture_layout(read_things(image), image.size)
            agreed, kept = match(wish, picture)
            scores["pi"] = agreed * (1 + kept) / 2
            scores["ri"] = plan_picture_iou(plan, picture) if sample.plan_known else NAN
            scores["correct"] = float(granted(wish, picture.looks, picture.boxes))
            found = found_words(picture)
        return {name: scores[name] for name in names}, said, found
