"""Reads a picture back into things: connected components, then colour, texture, shape and box of each.

Thresholds are fractions of the canvas or of the component, so pictures of any size can be read.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gotr1_scenes.painter import BACKGROUND, STRIPE
from gotr1_scenes.world import COLORS, SHAPES, Look, Thing

SPECK = 0.006  # of the canvas: smaller components are noise (the smallest thing covers 0.03)
PURE = 0.75  # of a thing's coloured pixels must agree for it to have a colour
STRIPED = 0.25  # of a thing's pixels are stripe in a striped one (0.5 when painted), none in a plain one
FIT = 0.8  # intersection over union with the best shape's outline
SQUARENESS = 0.75  # shorter over longer side

_NAMES = (*COLORS, "stripe", "background")
_PALETTE = np.array([*COLORS.values(), STRIPE, BACKGROUND], np.float32)


@cache
def outline(shape: str, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels ``[height, width]`` that a shape covers when it fills a box of that size; a cross's arms are 4/12 or 4/20 of it."""
    y, x = np.mgrid[:height, :width] + 0.5
    y, x = y / height, x / width
    if shape == "square":
        return np.ones((height, width), bool)
    if shape == "circle":
        return np.asarray((x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25)
    if shape == "triangle":
        return np.asarray(np.abs(x - 0.5) <= y / 2 + 0.3 / width)
    arm = 1 / 6 if shape == "cross" else 1 / 10
    return np.asarray((np.abs(x - 0.5) < arm) | (np.abs(y - 0.5) < arm))


def classify(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The nearest palette entry of every pixel ``[H, W]``."""
    distance = ((pixels[:, :, None].astype(np.float32) - _PALETTE) ** 2).sum(-1)
    return distance.argmin(-1)


def _shape(inside: NDArray[np.bool_]) -> str | None:
    """The shape whose outline fits best, or none."""
    height, width = inside.shape
    if min(height, width) < SQUARENESS * max(height, width):
        return None
    best, found = FIT, None
    for name in (*SHAPES, "thin cross"):
        ideal = outline(name, height, width)
        fit = (inside & ideal).sum() / (inside | ideal).sum()
        if fit >= best:
            best, found = fit, name.removeprefix("thin ")
    return found


def read(image: Image.Image) -> list[Thing]:
    """The things in a picture, from left to right; an attribute that cannot be told is ``None``. Boxes are in pixels."""
    image = image.convert("RGB")
    return list(_read(image.tobytes(), image.size))


@lru_cache(maxsize=256)
def _read(pixels: bytes, size: tuple[int, int]) -> tuple[Thing, ...]:
    """A picture is asked about several times."""
    kinds = classify(np.frombuffer(pixels, np.uint8).reshape(*size[::-1], 3))
    labels, _ = ndimage.label(kinds != _NAMES.index("background"))
    things = []
    for number, spot in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[spot] == number
        if inside.sum() < SPECK * kinds.size:
            continue
        seen = np.bincount(kinds[spot][inside], minlength=len(_NAMES))
        stripes, colored = seen[_NAMES.index("stripe")] / inside.sum(), seen[: len(COLORS)]
        top = int(colored.argmax())
        color = _NAMES[top] if colored[top] and colored[top] >= PURE * colored.sum() else None
        look = Look(_shape(inside), color, "striped" if stripes >= STRIPED else "plain")
        rows, columns = spot
        things.append(Thing(look, (columns.start, rows.start, columns.stop, rows.stop)))
    return tuple(sorted(things, key=lambda thing: thing.box))
