"""Draws a chain's boxes, each with its phrase, on a canvas or over a picture. PIL is imported only when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from gotr1_core.chain import SCALE, Box, Chain
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font: TypeAlias = FreeTypeFont | ImageFont

# Dark enough for white letters, and different enough from each other.
PALETTE: Final[tuple[tuple[int, int, int], ...]] = (
    (200, 30, 35),
    (25, 100, 175),
    (25, 125, 50),
    (185, 90, 0),
    (125, 65, 165),
    (0, 120, 125),
    (200, 40, 135),
    (105, 65, 40),
)


def draw_chain(chain: Chain, size: tuple[int, int] = (448, 448), image: Image | None = None) -> Image:
    """Draws the chain's regions on a canvas, a new RGB image of `size`. Spatial judges look at this picture.

    Each box has an outline in its own colour (`PALETTE`, repeated) and a filled label with its phrase at its top-left corner. A label moves
    only as far as needed to stay inside the canvas and off earlier labels. A phrase too long for the canvas ends in dots. Characters that
    the built-in font lacks become their base letter or "?".

    Args:
        chain: any chain, also a malformed one; only its regions are drawn.
        size: (width, height) of the result, pixels.
        image: the background; white if None. If both factors of its enlargement are whole numbers, its pixels are kept (nearest); else it
            is resized bicubically.

    Raises:
        UsageError: a width or height below 1.
    """
    from PIL import ImageDraw

    if min(size) < 1:
        raise UsageError(f"a canvas of {size[0]}x{size[1]} pixels cannot be drawn on", hint="give a positive width and height")
    canvas = _background(size, image)
    pen = ImageDraw.Draw(canvas)
    width = max(1, round(min(size) / 150))
    corners = [_pixels(region.box, size) for region in chain.regions]
    for index, corner in enumerate(corners):
        pen.rectangle(corner, outline=PALETTE[index % len(PALETTE)], width=width)
    # Labels last, so that no outline crosses a phrase.
    _label_all(pen, [region.phrase for region in chain.regions], corners, size)
    return canvas


def _background(size: tuple[int, int], image: Image | None) -> Image:
    from PIL import Image as images

    if image is None:
        return images.new("RGB", size, (255, 255, 255))
    whole_factors = size[0] % image.width == 0 and size[1] % image.height == 0
    filter = images.Resampling.NEAREST if whole_factors else images.Resampling.BICUBIC
    return image.convert("RGB").resize(size, filter)


def _pixels(box: Box, size: tuple[int, int]) -> Box:
    """Converts a box to pixels, both corners inclusive: 0 is the first pixel and 999 the last."""
    x1, y1, x2, y2 = box
    right, bottom = size[0] - 1, size[1] - 1
    return round(x1 * right / SCALE), round(y1 * bottom / SCALE), round(x2 * right / SCALE), round(y2 * bottom / SCALE)


def _label_all(pen: ImageDraw, phrases: Sequence[str], corners: Sequence[Box], size: tuple[int, int]) -> None:
    """Writes each phrase on a filled rectangle at the top-left corner of its box."""
    if not phrases:
        return
    from PIL import ImageFont

    font, pad = ImageFont.load_default(size=max(8, round(min(size) / 28))), max(1, round(min(size) / 220))
    glyphs = _Glyphs(font)
    _, top, _, bottom = font.getbbox("Ág|")  # one height for all labels, so that baselines agree
    height = round(bottom - top) + 2 * pad
    placed: list[Box] = []
    for index, (phrase, corner) in enumerate(zip(phrases, corners, strict=True)):
        text = _fit(glyphs.printable(phrase), font, size[0] - 2 * pad)
        width = round(font.getlength(text) + 0.5) + 2 * pad
        label = _place(corner, (width, height), size, placed)
        placed.append(label)
        pen.rectangle(label, fill=PALETTE[index % len(PALETTE)])
        pen.text((label[0] + pad, label[1] + pad - top), text, fill=(255, 255, 255), font=font)


def _place(corner: Box, label: tuple[int, int], size: tuple[int, int], placed: Sequence[Box]) -> Box:
    """Returns the box of a label of (width, height): at the corner, inside the canvas, and below earlier labels that it would cover."""
    left = max(0, min(corner[0], size[0] - label[0]))
    first = top = max(0, min(corner[1], size[1] - label[1]))
    while (below := _first_free_row(left, top, label, placed)) is not None:
        top = below
        if top + label[1] > size[1]:
            top = first  # no room below: covers another label rather than leave the canvas
            break
    return left, top, min(left + label[0], size[0]) - 1, min(top + label[1], size[1]) - 1


def _first_free_row(left: int, top: int, label: tuple[int, int], placed: Sequence[Box]) -> int | None:
    """Returns the first row below a placed label that this one would cover; None if it covers no label."""
    right, bottom = left + label[0] - 1, top + label[1] - 1
    for x1, y1, x2, y2 in placed:
        if left <= x2 and x1 <= right and top <= y2 and y1 <= bottom:
            return y2 + 1
    return None


def _fit(text: str, font: Font, width: int) -> str:
    """Returns the text, or the longest beginning that fits with dots into `width` pixels (at least one character)."""
    if font.getlength(text) <= width:
        return text
    fits, fails = 0, len(text)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if font.getlength(text[:middle].rstrip() + "...") <= width:
            fits = middle
        else:
            fails = middle
    return text[:fits].rstrip() + "..." if fits else text[:1]


class _Glyphs:
    """Finds out which characters a font can show, by comparing their pixels with those of its glyph for missing characters."""

    def __init__(self, font: Font) -> None:
        self._font = font
        self._missing = self._shape("\U0010fffe")
        self._replacements: dict[str, str] = {}

    def printable(self, phrase: str) -> str:
        """Returns the phrase on one line, in characters that the font has, cut to a length that no canvas can show."""
        from unicodedata import normalize

        words = normalize("NFC", " ".join(phrase[:2000].split())[:1000])
        return "".join(self._replacements.get(letter) or self._look_up(letter) for letter in words)

    def _look_up(self, letter: str) -> str:
        from unicodedata import normalize

        for candidate in (letter, normalize("NFKD", letter)[:1]):
            if candidate.isprintable() and self._shape(candidate) != self._missing:
                return self._replacements.setdefault(letter, candidate)
        return self._replacements.setdefault(letter, "?")

    def _shape(self, letter: str) -> bytes | None:
        """Returns the letter's pixels; None if the font raises an error for it (a bitmap font beyond Latin-1)."""
        try:
            mask = self._font.getmask(letter)
        except (UnicodeError, ValueError, OSError):
            return None
        return repr(mask.size).encode() + bytes(mask)
