"""Draws a chain's boxes, each with its phrase, on a canvas or over a picture. PIL is imported when something is drawn."""

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

# Dark enough for white letters, and far enough apart to be told from one another.
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
    """The chain's regions drawn on a canvas, which is what a spatial judge looks at.

    Each box is outlined in its own colour (`PALETTE`, cycling), its phrase in a filled label at its top-left
    corner, moved only as far as needed to stay inside the canvas and off an earlier label. A phrase too long
    for the canvas is cut with dots; characters that the built-in font lacks become their base letter or "?".

    Args:
        chain: any chain, malformed ones too; only its regions are drawn.
        size: (width, height) of the result, pixels.
        image: the background; blank white without one. Enlarged by whole numbers it keeps its pixels
            (nearest), else it is resized bicubically.

    Returns:
        A new RGB image of `size`.

    Raises:
        UsageError: a size that is not positive.
    """
    from PIL import ImageDraw

    if min(size) < 1:
        raise UsageError(f"a canvas of {size[0]}x{size[1]} pixels cannot be drawn on", hint="give a positive width and height")
    canvas = _background(size, image)
    pen = ImageDraw.Draw(canvas)
    width = max(1, round(min(size) / 150))
    corners = [_pixels(region.box, size) for region in chain.regions]
    for index, corner in enumerate(corners):
        pen.rectangle(corner, outline=_colour(index), width=width)
    # Labels last, so that no outline crosses a name.
    _label_all(pen, [region.phrase for region in chain.regions], corners, size)
    return canvas


def _background(size: tuple[int, int], image: Image | None) -> Image:
    from PIL import Image as images

    if image is None:
        return images.new("RGB", size, (255, 255, 255))
    whole = size[0] % image.width == 0 and size[1] % image.height == 0
    filter = images.Resampling.NEAREST if whole else images.Resampling.BICUBIC
    return image.convert("RGB").resize(size, filter)


def _colour(index: int) -> tuple[int, int, int]:
    return PALETTE[index % len(PALETTE)]


def _pixels(box: Box, size: tuple[int, int]) -> Box:
    """The box in pixels, both corners inclusive: 0 is the first pixel and 999 the last."""
    x1, y1, x2, y2 = box
    right, bottom = size[0] - 1, size[1] - 1
    return round(x1 * right / SCALE), round(y1 * bottom / SCALE), round(x2 * right / SCALE), round(y2 * bottom / SCALE)


def _label_all(pen: ImageDraw, phrases: Sequence[str], corners: Sequence[Box], size: tuple[int, int]) -> None:
    """Write each phrase on a filled rectangle at the top-left of its box."""
    if not phrases:
        return
    font, pad = _font(size), max(1, round(min(size) / 220))
    lacks = _Glyphs(font)
    _, top, _, bottom = font.getbbox("Ág|")  # one height for all labels, so that baselines agree
    high = round(bottom - top) + 2 * pad
    placed: list[Box] = []
    for index, (phrase, corner) in enumerate(zip(phrases, corners, strict=True)):
        text = _fit(lacks.printable(phrase), font, size[0] - 2 * pad)
        wide = round(font.getlength(text) + 0.5) + 2 * pad
        label = _place(corner, (wide, high), size, placed)
        placed.append(label)
        pen.rectangle(label, fill=_colour(index))
        pen.text((label[0] + pad, label[1] + pad - top), text, fill=(255, 255, 255), font=font)


def _font(size: tuple[int, int]) -> Font:
    from PIL import ImageFont

    return ImageFont.load_default(size=max(8, round(min(size) / 28)))


def _place(corner: Box, label: tuple[int, int], size: tuple[int, int], placed: Sequence[Box]) -> Box:
    """Where a label of (width, height) goes: the corner, inside the canvas, below labels that are in the way."""
    left = max(0, min(corner[0], size[0] - label[0]))
    first = top = max(0, min(corner[1], size[1] - label[1]))
    while (below := _hit(left, top, label, placed)) is not None:
        top = below
        if top + label[1] > size[1]:
            top = first  # no room: better on top of another name than off the canvas
            break
    return left, top, min(left + label[0], size[0]) - 1, min(top + label[1], size[1]) - 1


def _hit(left: int, top: int, label: tuple[int, int], placed: Sequence[Box]) -> int | None:
    """The first row below some placed label that this one would cover, if any."""
    right, bottom = left + label[0] - 1, top + label[1] - 1
    for x1, y1, x2, y2 in placed:
        if left <= x2 and x1 <= right and top <= y2 and y1 <= bottom:
            return y2 + 1
    return None


def _fit(text: str, font: Font, width: int) -> str:
    """The text, or as much of its beginning as fits with dots into `width` pixels (one character at least)."""
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
    """Which characters a font can show, told by comparing them with the glyph it shows for none."""

    def __init__(self, font: Font) -> None:
        self._font = font
        self._missing = self._shape("\U0010fffe")
        self._known: dict[str, str] = {}

    def printable(self, phrase: str) -> str:
        """The phrase on one line, in characters that the font has, cut to what could ever be drawn."""
        from unicodedata import normalize

        words = normalize("NFC", " ".join(phrase[:2000].split())[:1000])
        return "".join(self._known.get(letter) or self._look_up(letter) for letter in words)

    def _look_up(self, letter: str) -> str:
        from unicodedata import normalize

        for candidate in (letter, normalize("NFKD", letter)[:1]):
            if candidate.isprintable() and self._shape(candidate) != self._missing:
                return self._known.setdefault(letter, candidate)
        return self._known.setdefault(letter, "?")

    def _shape(self, letter: str) -> bytes | None:
        """The letter's pixels; None where the font cannot even be asked (a bitmap font beyond Latin-1)."""
        try:
            mask = self._font.getmask(letter)
        except (UnicodeError, ValueError, OSError):
            return None
        return repr(mask.size).encode() + bytes(mask)
