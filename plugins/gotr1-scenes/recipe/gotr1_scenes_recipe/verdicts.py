"""Makes the written verdicts that the small judge learns: the wish, the things and their places, the match of each wished thing, the score.

Each step needs little more than the text before it. So small a model cannot produce a score without such steps. Places are in squares of
the world's grid, 0 to 12: x1 y1 x2 y2. Wished things are numbered, so that later steps can refer to them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from gotr1_scenes.judge import SceneLayout, best_assignment, separate_share
from gotr1_scenes.language import noun
from gotr1_scenes.wish import Wish
from gotr1_scenes.world import CANVAS, GRID, Look

MAX_VERDICT_THINGS = 6
"""There is no verdict about more things, because the answer would be too long."""
NOTHING = "nothing"
NUMBERS = ("first", "second", "third", "fourth")


def on_grid(box: Sequence[float]) -> tuple[int, int, int, int]:
    """Converts a box from pixels of the canvas to squares of the grid."""
    x1, y1, x2, y2 = (min(CANVAS // GRID, max(0, round(v / GRID))) for v in box)
    return x1, y1, x2, y2


def as_phrased(look: Look) -> Look:
    """Returns the look as chains name it: ``plain`` is left out."""
    return look if look.texture == "striped" else replace(look, texture=None)


def verdict(wish: Wish, layout: SceneLayout, *, sketch: bool) -> str:
    """Returns the verdict (JSON) about the things in a picture (``pi``), or about those in the sketch of a plan (``spa``)."""
    unmatched = (0.0, float(not wish.relations), (None,) * len(wish.things))
    agreed, kept, assignment = best_assignment(wish, layout) if layout.looks else unmatched
    things = "; ".join(f"{_named(look)} {_place(box)}" for look, box in zip(layout.looks, layout.boxes, strict=True)) or NOTHING
    if sketch:
        share = separate_share(layout)
        reasons = [f"{round(share * len(layout.boxes))} of {len(layout.boxes)} apart"]
        score = kept * share
    else:
        count = max(len(wish.things), len(layout.looks))
        matches = [_match_text(want, None if k is None else layout.looks[k]) for want, k in zip(wish.things, assignment, strict=True)]
        numbered = (
            f"{number} {noun(want, article=False)}: {text}" for number, want, text in zip(NUMBERS, wish.things, matches, strict=False)
        )
        reasons = [*numbered, f"{len(wish.things)} asked {len(layout.looks)} there"]
        score = agreed / count * (1 + kept) / 2
    for name, i, j in wish.relations:
        a, b = (NOTHING if k is None else _place(layout.boxes[k]) for k in (assignment[i], assignment[j]))
        reasons.append(relation_text(name, (NUMBERS[i], wish.things[i], a), (NUMBERS[j], wish.things[j], b)) + (" yes" if kept else " no"))
    # Texts begin with a space, so that their words are the same tokens as in a prompt and can be copied.
    steps = {"request": f" {request_text(wish)}", "description": f" {things}", "reason": f" {'; '.join(reasons)}"}
    return json.dumps(steps | {"score": round(10 * score, 1)})


def request_text(wish: Wish) -> str:
    """Returns a wish in words: its things, numbered, and their relations."""
    things = [f"{number} {noun(want, article=False)}" for number, want in zip(NUMBERS, wish.things, strict=False)]
    return "; ".join([*things, *(f"{name} {NUMBERS[i]} {NUMBERS[j]}" for name, i, j in wish.relations)])


def relation_text(name: str, *things: tuple[str, Look, str]) -> str:
    """Returns a relation in words, with number, noun and place of its two things."""
    return " ".join([name, *(f"{number} {noun(want, article=False)} {place}" for number, want, place in things)])


def _named(look: Look) -> str:
    """Returns a noun phrase without an article. An unknown shape is called "thing"."""
    return noun(replace(as_phrased(look), shape=look.shape or "thing"), article=False)


def _place(box: Sequence[float]) -> str:
    return " ".join(map(str, on_grid([CANVAS * v for v in box])))


def _match_text(want: Look, got: Look | None) -> str:
    """Returns the thing that is matched to a wished one, and how many of the wished attributes it has."""
    named = sum(value is not None for value in (want.shape, want.color, want.texture))
    right = 0 if got is None else round(named * want.agreement(got))
    return f"{_named(got) if got is not None and right else NOTHING} {right} of {named}"
