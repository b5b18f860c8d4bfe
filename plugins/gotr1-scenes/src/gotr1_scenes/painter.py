"""Paints a scene. The miniature learns to draw such pictures, and the judge must read them back without error."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gotr1_scenes.world import CANVAS, CELL, COLORS, GRID, SHAPES, SIZES, TEXTURES, Look, Scene, Thing

BACKGROUND = (240, 240, 240)
STRIPE = (20, 20, 20)


def covers(shape: str, size: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which points of its box a shape covers, in the broadcast shape of ``x`` and ``y``.

    The box is a square with side ``size`` and its top-left corner at (0, 0).
    """
    half = size / 2
    if shape == "square":
        return np.ones(np.broadcast_shapes(x.shape, y.shape), bool)
    if shape == "circle":
        return np.asarray((x - half) ** 2 + (y - half) ** 2 <= half**2)
    if shape == "triangle":
        return np.asarray(np.abs(x - half) <= y / 2 + 0.3)
    return np.asarray((np.abs(x - half) < GRID / 2) | (np.abs(y - half) < GRID / 2))


def paint(scene: Scene, side: int = CANVAS) -> Image.Image:
    """Returns the picture of a scene, RGB, ``side`` pixels high and wide."""
    return Image.fromarray(paint_array(scene, side))


def paint_array(scene: Scene, side: int = CANVAS) -> NDArray[np.uint8]:
    """Returns the picture of a scene as ``uint8 [side, side, 3]``. A pixel has the colour at its centre, so colours are never mixed."""
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = BACKGROUND
    centres = (np.arange(side) + 0.5) * CANVAS / side  # in pixels of the 48-pixel canvas
    for thing in scene:
        x1, y1, x2, y2 = thing.box
        assert thing.look.shape is not None and thing.look.color is not None
        (rows, columns) = (np.flatnonzero((centres >= a) & (centres < b)) for a, b in ((y1, y2), (x1, x2)))
        y, x = centres[rows, None] - y1, centres[None, columns] - x1
        inside = covers(thing.look.shape, x2 - x1, x, y)
        patch = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        patch[inside] = COLORS[thing.look.color]
        if thing.look.texture == "striped":
            patch[inside & (y % 4 >= 2)] = STRIPE
    return canvas


def patches(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the 8x8 patches ``[h * w, 8, 8, 3]`` of a picture ``[H, W, 3]``, row by row."""
    height, width = (n // CELL for n in picture.shape[:2])
    return picture.reshape(height, CELL, width, CELL, 3).swapaxes(1, 2).reshape(-1, CELL, CELL, 3)


@cache
def patch_table() -> dict[bytes, int]:
    """Returns a number for every patch that can occur, by its bytes. The empty patch has number 0, then they are sorted by content."""
    table: dict[bytes, int] = {paint_array(())[:CELL, :CELL].tobytes(): 0}
    for color in COLORS:
        for texture in TEXTURES:
            for shape in SHAPES:
                for size in SIZES:
                    for x, y in ((0, 0), (GRID, 0), (0, GRID), (GRID, GRID)):
                        scene = (Thing(Look(shape, color, texture), (x, y, x + size, y + size)),)
                        for patch in patches(paint_array(scene)):
                            table.setdefault(patch.tobytes(), len(table))
    return table


def patch_numbers(picture: NDArray[np.uint8]) -> list[int]:
    """Returns the numbers of a painted picture's patches, row by row. The picture is ``uint8 [H, W, 3]``."""
    table = patch_table()
    return [table[patch.tobytes()] for patch in patches(picture)]
