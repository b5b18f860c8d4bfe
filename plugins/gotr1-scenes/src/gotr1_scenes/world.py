"""What exists in the embedded world: coloured, textured shapes on a 48-pixel canvas.

Everything sits on a 4-pixel grid and no two objects share an 8-pixel cell, so a picture is made of few distinct
8x8 patches: that is what lets a model of a few megabytes learn to draw it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CANVAS = 48
GRID = 4
CELL = 8
MAX_THINGS = 4

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (40, 165, 70),
    "blue": (45, 90, 230),
    "yellow": (245, 205, 40),
    "purple": (150, 60, 200),
    "cyan": (60, 200, 220),
}
SHAPES = ("circle", "square", "triangle", "cross")
TEXTURES = ("plain", "striped")
SIZES = (12, 20)
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Look:
    """What a thing looks like; ``None`` leaves an attribute open (a prompt need not say everything)."""

    shape: str | None
    color: str | None = None
    texture: str | None = None

    def admits(self, other: Look) -> bool:
        """Whether ``other`` has every attribute that this look names."""
        pairs = ((self.shape, other.shape), (self.color, other.color), (self.texture, other.texture))
        return all(mine is None or mine == theirs for mine, theirs in pairs)

    def agreement(self, other: Look) -> float:
        """The share, in [0,1], of the attributes this look names that ``other`` has."""
        pairs = ((self.shape, other.shape), (self.color, other.color), (self.texture, other.texture))
        named = [mine == theirs for mine, theirs in pairs if mine is not None]
        return sum(named) / len(named) if named else 1.0


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its full look and its pixel box ``(x1, y1, x2, y2)``, ends exclusive."""

    look: Look
    box: Box


Scene = tuple[Thing, ...]


def holds(relation: str, a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether box ``a`` is ``relation`` of box ``b``: clear of it along the relation's axis, aligned on the other.

    "Left" means that a's right side is left of b's left side and that their vertical extents overlap by at least half of
    the smaller one, the usual meaning of the words for two things side by side. Units cancel: any one unit will do.
    """
    if relation in ("right", "below"):
        a, b, relation = b, a, OPPOSITE[relation]
    along, across = (0, 1) if relation == "left" else (1, 0)
    overlap = min(a[across + 2], b[across + 2]) - max(a[across], b[across])
    smaller = min(a[across + 2] - a[across], b[across + 2] - b[across])
    return a[along + 2] <= b[along] and overlap >= smaller / 2


def clear_of(box: Box, others: Sequence[Box]) -> bool:
    """Whether ``box`` keeps one grid step of distance from every other box and shares no 8-pixel cell with it."""
    for other in others:
        near = all(box[k] < other[k + 2] + GRID and other[k] < box[k + 2] + GRID for k in (0, 1))
        shared = all(box[k] // CELL <= (other[k + 2] - 1) // CELL and other[k] // CELL <= (box[k + 2] - 1) // CELL for k in (0, 1))
        if near or shared:
            return False
    return True


def place(count: int, rng: random.Random, accept: Callable[[list[Box]], bool] = lambda boxes: True) -> list[Box]:
    """Boxes for ``count`` things, drawn until they keep their distance and ``accept`` agrees."""
    while True:
        boxes: list[Box] = []
        for _ in range(count):
            size = SIZES[1] if rng.random() < 0.4 else SIZES[0]
            for _ in range(20):
                x, y = (GRID * rng.randrange((CANVAS - size) // GRID + 1) for _ in range(2))
                box = (x, y, x + size, y + size)
                if clear_of(box, boxes):
                    boxes.append(box)
                    break
        if len(boxes) == count and accept(boxes):
            return boxes


def any_look(rng: random.Random) -> Look:
    """A full look, uniform over everything that exists."""
    return Look(rng.choice(SHAPES), rng.choice(tuple(COLORS)), rng.choice(TEXTURES))
