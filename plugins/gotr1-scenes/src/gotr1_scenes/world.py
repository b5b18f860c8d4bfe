"""Defines the embedded world: coloured, textured shapes on a 48-pixel canvas.

All objects lie on a 4-pixel grid and no two share an 8-pixel cell. So a picture is made of few distinct 8x8 patches, and a model of a few
megabytes can learn to draw it.
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
    """The look of a thing. ``None`` leaves an attribute open, because a prompt need not say everything."""

    shape: str | None
    color: str | None = None
    texture: str | None = None

    def admits(self, other: Look) -> bool:
        """Returns true if ``other`` has every attribute that this look names."""
        pairs = ((self.shape, other.shape), (self.color, other.color), (self.texture, other.texture))
        return all(wanted is None or wanted == actual for wanted, actual in pairs)

    def agreement(self, other: Look) -> float:
        """Returns the share of this look's named attributes that ``other`` has, in [0,1]. It is 1 if none is named."""
        pairs = ((self.shape, other.shape), (self.color, other.color), (self.texture, other.texture))
        matches = [wanted == actual for wanted, actual in pairs if wanted is not None]
        return sum(matches) / len(matches) if matches else 1.0


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its full look and its box ``(x1, y1, x2, y2)`` in pixels, ends exclusive."""

    look: Look
    box: Box


Scene = tuple[Thing, ...]


def holds(relation: str, a: Sequence[float], b: Sequence[float]) -> bool:
    """Returns true if box ``a`` is ``relation`` of box ``b``: no overlap along the relation's axis, aligned along the other axis.

    "Left" means that a's right side is left of b's left side, and that their vertical extents overlap by at least half of the smaller
    one. This is the usual meaning of the words for two things side by side. Both boxes are in the same unit, which may be any.
    """
    if relation in ("right", "below"):
        a, b, relation = b, a, OPPOSITE[relation]
    along, across = (0, 1) if relation == "left" else (1, 0)
    overlap = min(a[across + 2], b[across + 2]) - max(a[across], b[across])
    smaller = min(a[across + 2] - a[across], b[across + 2] - b[across])
    return a[along + 2] <= b[along] and overlap >= smaller / 2


def clear_of(box: Box, others: Sequence[Box]) -> bool:
    """Returns true if ``box`` keeps a distance of one grid step from every other box and shares no 8-pixel cell with one."""
    for other in others:
        near = all(box[k] < other[k + 2] + GRID and other[k] < box[k + 2] + GRID for k in (0, 1))
        shared = all(box[k] // CELL <= (other[k + 2] - 1) // CELL and other[k] // CELL <= (box[k + 2] - 1) // CELL for k in (0, 1))
        if near or shared:
            return False
    return True


def place_boxes(count: int, rng: random.Random, accept: Callable[[list[Box]], bool] = lambda _: True) -> list[Box]:
    """Draws boxes for ``count`` things until they keep their distance and ``accept`` returns true."""
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


def random_look(rng: random.Random) -> Look:
    """Draws a full look, uniform over all that exist."""
    return Look(rng.choice(SHAPES), rng.choice(tuple(COLORS)), rng.choice(TEXTURES))
