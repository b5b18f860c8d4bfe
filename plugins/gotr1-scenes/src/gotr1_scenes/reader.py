"""Reads the things in a picture: finds connected components, then colour, texture, shape and box of each.

Thresholds are fractions of the canvas or of the component, so a picture may have any size.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gotr1_scenes.painter import BACKGROUND, STRIPE
from gotr1_scenes.world import COLORS, SHAPES, Look, Thing

SPECK = 0.006  # share of the canvas; smaller components are noise (the smallest thing covers 0.03)
PURE = 0.75  # share of a thing's coloured pixels that must have one colour, or its colour is unknown
STRIPED = 0.25  # share of stripe pixels from which a thing is striped (0.5 as painted; a plain thing has none)
FIT = 0.8  # minimum intersection over union with the best shape's outline
SQUARENESS = 0.75  # minimum ratio of shorter to longer side
BAND = 65_536  # pixels that are classified together
SMALL = 4096  # pixels of the largest outline that is kept for the next thing of its size
REMEMBERED = 256  # pictures

_NAMES = (*COLORS, "stripe", "background")
_PALETTE = np.array([*COLORS.values(), STRIPE, BACKGROUND], np.float32)
_remembered: dict[tuple[bytes, tuple[int, int]], tuple[Thing, ...]] = {}


def outline(shape: str, height: int, width: int) -> NDArray[np.bool_]:
    """Returns the pixels ``[height, width]`` that a shape covers if it fills a box of that size.

    The arms of a ``cross`` are 4/12 of its size, those of a ``thin cross`` 4/20.
    """
    return (_small_outline if height * width <= SMALL else _outline)(shape, height, width)


def _outline(shape: str, height: int, width: int) -> NDArray[np.bool_]:
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


_small_outline = lru_cache(maxsize=4096)(_outline)  # at most 16 MB


def classify(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Returns the nearest palette entry ``[H, W]`` of every pixel of a picture ``[H, W, 3]``."""
    rows = max(1, BAND // max(1, pixels.shape[1]))  # a band of rows at a time: the distances of a pixel take 200 bytes
    bands = [pixels[start : start + rows] for start in range(0, len(pixels), rows)]
    return np.concatenate([((band[:, :, None].astype(np.float32) - _PALETTE) ** 2).sum(-1).argmin(-1) for band in bands])


def _shape(inside: NDArray[np.bool_]) -> str | None:
    """Returns the shape whose outline fits the pixels ``[H, W]`` best, or None if none fits well enough."""
    height, width = inside.shape
    if min(height, width) < SQUARENESS * max(height, width):
        return None
    best, shape = FIT, None
    for name in (*SHAPES, "thin cross"):
        ideal = outline(name, height, width)
        fit = (inside & ideal).sum() / (inside | ideal).sum()
        if fit >= best:
            best, shape = fit, name.removeprefix("thin ")
    return shape


def read_things(image: Image.Image) -> list[Thing]:
    """Returns the things in a picture, from left to right. An attribute that cannot be recognised is ``None``. Boxes are in pixels.

    The last pictures are remembered by a digest of their pixels, because each is read several times.
    """
    image = image.convert("RGB")
    pixels = image.tobytes()
    key = hashlib.blake2b(pixels, digest_size=16).digest(), image.size
    if key not in _remembered:
        things = _read_pixels(np.frombuffer(pixels, np.uint8).reshape(image.height, image.width, 3))
        if len(_remembered) >= REMEMBERED:
            _remembered.pop(next(iter(_remembered)), None)
        _remembered[key] = things
    return list(_remembered[key])


def _read_pixels(pixels: NDArray[np.uint8]) -> tuple[Thing, ...]:
    """Reads the things in pixels ``[H, W, 3]``."""
    kinds = classify(pixels)
    labels, _ = ndimage.label(kinds != _NAMES.index("background"))
    things = []
    for number, region in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[region] == number
        if inside.sum() < SPECK * kinds.size:
            continue
        counts = np.bincount(kinds[region][inside], minlength=len(_NAMES))
        stripes, colored = counts[_NAMES.index("stripe")] / inside.sum(), counts[: len(COLORS)]
        top = int(colored.argmax())
        color = _NAMES[top] if colored[top] and colored[top] >= PURE * colored.sum() else None
        look = Look(_shape(inside), color, "striped" if stripes >= STRIPED else "plain")
        rows, columns = region
        things.append(Thing(look, (columns.start, rows.start, columns.stop, rows.stop)))
    return tuple(sorted(things, key=lambda thing: thing.box))
