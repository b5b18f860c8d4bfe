"""The written verdicts that the small judge learns: what is asked for, what there is and where, what became of each thing, the score.

Each step of it needs little more than what was written before: a score that is told at once does not come out of so small a model. Places
are in squares of the world's grid, 0 to 12: x1 y1 x2 y2. What is asked for is numbered, so that it can be found again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from gotr1_scenes.judge import SceneLayout, best_assignment, separate_share
from gotr1_scenes.language import noun
from gotr1_scenes.wish import Wish
from gotr1_scenes.world import CANVAS, GRID, Look

MOST_THINGS = 6
"""What has more things is not told: an answer would be too long."""
NOTHING = "nothing"
NUMBERS = ("first", "second", "third", "fourth")


def on_grid(box: Sequence[float]) -> tuple[int, int, int, int]:
    """A box in the canvas's unit, in squares of the grid."""
    x1, y1, x2, y2 = (min(CANVAS // GRID, max(0, round(v / GRID))) for v in box)
    return x1, y1, x2, y2


def as_phrased(look: Look) -> Look:
    """As chains say it: what is not called striped is plain."""
    return look if look.texture == "striped" else replace(look, texture=None)


def verdict(wish: Wish, found: SceneLayout, *, sketch: bool) -> str:
    """What is to be answered about a picture (``pi``), or about the sketch of a plan (``spa``), of the things ``found``."""
    agreed, kept, given = best_assignment(wish, found) if found.looks else (0.0, float(not wish.relations), (None,) * len(wish.things))
    there = "; ".join(f"{_named(look)} {_place(box)}" for look, box in zip(found.looks, found.boxes, strict=True)) or NOTHING
    if sketch:
        share = separate_share(found)
        reasons = [f"{round(share * len(found.boxes))} of {len(found.boxes)} apart"]
        score = kept * share
    else:
        count = max(len(wish.things), len(found.looks))
        met = [_met(want, None if k is None else found.looks[k]) for want, k in zip(wish.things, given, strict=True)]
        numbered = (f"{number} {noun(want, article=False)}: {got}" for number, want, got in zip(NUMBERS, wish.things, met, strict=False))
        reasons = [*numbered, f"{len(wish.things)} asked {len(found.looks)} there"]
        score = agreed / count * (1 + kept) / 2
    for name, i, j in wish.relations:
        a, b = (NOTHING if k is None else _place(found.boxes[k]) for k in (given[i], given[j]))
        reasons.append(relation_text(name, (NUMBERS[i], wish.things[i], a), (NUMBERS[j], wish.things[j], b)) + (" yes" if kept else " no"))
    # After a space, as a word there is the token that it is in a prompt, and can be copied.
    said = {"request": f" {request_text(wish)}", "description": f" {there}", "reason": f" {'; '.join(reasons)}"}
    return json.dumps(said | {"score": round(10 * score, 1)})


def request_text(wish: Wish) -> str:
    """What a prompt asks for: its things, numbered, and which of them stand how."""
    things = [f"{number} {noun(want, article=False)}" for number, want in zip(NUMBERS, wish.things, strict=False)]
    return "; ".join([*things, *(f"{name} {NUMBERS[i]} {NUMBERS[j]}" for name, i, j in wish.relations)])


def relation_text(name: str, *things: tuple[str, Look, str]) -> str:
    """A relation with its two things, each with its number and its place."""
    return " ".join([name, *(f"{number} {noun(want, article=False)} {place}" for number, want, place in things)])


def _named(look: Look) -> str:
    """Without an article; a shape that cannot be told is a thing."""
    return noun(replace(as_phrased(look), shape=look.shape or "thing"), article=False)


def _place(box: Sequence[float]) -> str:
    return " ".join(map(str, on_grid([CANVAS * v for v in box])))


def _met(want: Look, got: Look | None) -> str:
    """What was taken for a thing that is asked for, and how many of its attributes that has."""
    named = sum(value is not None for value in (want.shape, want.color, want.texture))
    right = 0 if got is None else round(named * want.agreement(got))
    return f"{_named(got) if got is not None and right else NOTHING} {right} of {named}"
