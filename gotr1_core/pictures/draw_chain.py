"""Draws a chain's boxes, each with its phrase, on a canvas or over a picture. PIL is imported only when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
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
AUTO, NO_FONT = "auto", "none"
SYSTEM_FONTS: Final = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "SourceHanSans-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc"),
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf"),
    *("NotoSansHebrew-Regular.ttf", "NotoEmoji-Regular.ttf", "Symbola.ttf", "FreeSans.ttf", "unifont.ttf", "unifont.otf"),
    *("Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Kohinoor.ttc", "GeezaPro.ttc"),
    *("arial.ttf", "segoeui.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "Nirmala.ttc", "Nirmala.ttf", "seguisym.ttf"),
)
"""Well-known font files of Linux, macOS and Windows, the first choice first. They are looked for on the system and never downloaded."""
_JOINERS: Final = "\u200c\u200d\ufe0e\ufe0f"  # change their neighbours' shape; a font need not show them
_MAX_LETTERS: Final = 1000  # more than any canvas can show


def draw_chain(chain: Chain, size: tuple[int, int] = (448, 448), image: Image | None = None) -> Image:
    """Draws the chain's regions on a canvas, a new RGB image of `size`, without its legend: see `draw_with_legend`.

    Raises:
        UsageError: a width or height below 1.
    """
    return draw_with_legend(chain, size, image)[0]


def draw_with_legend(
    chain: Chain, size: tuple[int, int] = (448, 448), image: Image | None = None, *, font: str = AUTO
) -> tuple[Image, dict[int, str]]:
    """Draws the chain's regions on a canvas. Spatial judges look at this picture, and read its legend.

    Each box has an outline in its own colour (`PALETTE`, repeated) and a filled label with its phrase at its top-left corner. A label moves
    only as far as needed to stay inside the canvas and off earlier labels.

    A phrase too long for the canvas ends in dots. A phrase that the built-in font cannot draw has a numbered label: the region's number in
    the chain, counted from 1, then what can be drawn of the phrase. So have phrases that would look the same when cut. The legend has every
    such phrase in full. So chains with other words never have both the same picture and the same legend. Kinds of white space do not count
    as other words, nor do the ways in which Unicode composes a letter.

    Args:
        chain: any chain, also a malformed one; only its regions are drawn.
        size: (width, height) of the result, pixels.
        image: the background; white if None. If both factors of its enlargement are whole numbers, its pixels are kept (nearest); else it
            is resized bicubically.
        font: the font file of numbered labels; `auto` takes the first of `SYSTEM_FONTS` that has a phrase's letters, `none` takes none.

    Returns:
        The RGB image, and by number the phrases whose labels do not show them whole: numbered, cut or covered by other labels.

    Raises:
        UsageError: a width or height below 1, or the font cannot be read.
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
    return canvas, _label_all(pen, [" ".join(region.phrase.split()) for region in chain.regions], corners, size, font)


def check_font(font: str, side: int, key: str) -> None:
    """Checks the option `font` of a canvas whose shorter side has `side` pixels.

    Raises:
        UsageError: the font cannot be read. The message begins with `key`, the option's place in the config.
    """
    try:
        _fonts(font, _font_size(side))
    except UsageError as error:
        raise UsageError(f"{key}: {error.message}", hint=error.hint) from None


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


def _font_size(side: int) -> int:
    return max(8, round(side / 28))


@lru_cache(maxsize=16)
def _fonts(font: str, size: int) -> tuple[_Glyphs, ...]:
    """Returns the built-in font, and the fonts for what it lacks."""
    from PIL import ImageFont

    fonts = [_Glyphs(ImageFont.load_default(size=size))]
    given = font not in (AUTO, NO_FONT)
    for name in (str(Path(font).expanduser()),) if given else SYSTEM_FONTS if font == AUTO else ():
        try:
            if given and not Path(name).is_file():  # Pillow would look for another file of this name
                raise OSError("there is no such file")
            fonts.append(_Glyphs(ImageFont.truetype(name, size)))  # looks in the system's folders
        except (OSError, ImportError) as error:
            if given:
                hint = f"give a TrueType or OpenType font with scalable outlines, {AUTO} or {NO_FONT}"
                raise UsageError(f"the font {font} cannot be used: {error}", hint=hint) from None
    return tuple(fonts)


def _label_all(pen: ImageDraw, phrases: Sequence[str], corners: Sequence[Box], size: tuple[int, int], font: str) -> dict[int, str]:
    """Writes each phrase on a filled rectangle at the top-left corner of its box. Returns the legend."""
    if not phrases:
        return {}
    fonts, pad = _fonts(font, _font_size(min(size))), max(1, round(min(size) / 220))
    _, top, _, bottom = fonts[0].font.getbbox("Ág|")  # one height for all built-in labels, so that baselines agree
    labels, listed = _texts(phrases, fonts, size[0] - 2 * pad)
    placed: list[Box] = []
    for index, (pieces, corner) in enumerate(zip(labels, corners, strict=True)):
        boxes = [glyphs.font.getbbox(text) for text, glyphs in pieces if glyphs is not fonts[0]]
        height = max([bottom - top, *(box[3] - box[1] for box in boxes)])
        lengths = [glyphs.font.getlength(text) for text, glyphs in pieces]
        label = _place(corner, (round(sum(lengths) + 0.5) + 2 * pad, round(height) + 2 * pad), size, placed)
        placed.append(label)
        pen.rectangle(label, fill=PALETTE[index % len(PALETTE)])
        left: float = label[0] + pad
        for (text, glyphs), length in zip(pieces, lengths, strict=True):
            above = top if glyphs is fonts[0] else glyphs.font.getbbox(text)[1]
            pen.text((left, label[1] + pad - above), text, fill=(255, 255, 255), font=glyphs.font)
            left += length
    covered = {below for above, label in enumerate(placed) for below in range(above) if _overlap(label, placed[below])}
    return {index + 1: phrases[index] for index in sorted(listed | covered)}


def _texts(phrases: Sequence[str], fonts: Sequence[_Glyphs], room: int) -> tuple[list[list[tuple[str, _Glyphs]]], set[int]]:
    """Returns the pieces of text of each label, with their fonts, and the indices of the labels that do not show the whole phrase."""
    from unicodedata import normalize

    own = fonts[0]
    texts = [_fit(own.printable(phrase), own.font, room) for phrase in phrases]
    listed = {index for index, (text, phrase) in enumerate(zip(texts, phrases, strict=True)) if text != normalize("NFC", phrase)}
    numbered = {index for index in listed if texts.count(texts[index]) > 1 or not own.has_all(phrases[index])}
    if numbered:  # a phrase that begins with a digit could be taken for a number
        numbered |= {index for index, text in enumerate(texts) if text[:1].isdigit()}
    labels = [[(text, own)] for text in texts]
    for index in numbered:
        number, phrase = f"{index + 1} ", phrases[index]
        glyphs = next((glyphs for glyphs in fonts if glyphs.shows(phrase)), own)
        words = own.printable(phrase) if glyphs is own else phrase[:_MAX_LETTERS]
        if glyphs is own and not any(letter.isalnum() for letter in words):  # nothing but question marks
            labels[index] = [(number.strip(), own)]
        else:
            labels[index] = [(number, own), (_fit(words, glyphs.font, room - round(own.font.getlength(number) + 0.5)), glyphs)]
    return labels, listed | numbered


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
    box = (left, top, left + label[0] - 1, top + label[1] - 1)
    return next((other[3] + 1 for other in placed if _overlap(box, other)), None)


def _overlap(a: Box, b: Box) -> bool:
    """True if boxes of pixels, both corners inclusive, have a pixel in common."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


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
    """A font, and which characters it can show: their pixels are compared with those of its glyph for missing characters."""

    def __init__(self, font: Font) -> None:
        self.font = font
        self._missing = self._shape("\U0010fffe")
        self._replacements: dict[str, str] = {}

    def printable(self, phrase: str) -> str:
        """Returns the phrase in characters that the font has, else their base letters or "?", cut to a length that no canvas can show."""
        from unicodedata import normalize

        return "".join(self._replacements.get(letter) or self._look_up(letter) for letter in normalize("NFC", phrase[:_MAX_LETTERS]))

    def has_all(self, phrase: str) -> bool:
        """True if `printable` replaces no letter."""
        from unicodedata import normalize

        return self.printable(phrase) == normalize("NFC", phrase[:_MAX_LETTERS])

    def shows(self, phrase: str) -> bool:
        """True if the font has ink for every letter of the phrase, white space and joiners aside."""
        return all(letter.isspace() or letter in _JOINERS or self._has(letter) for letter in dict.fromkeys(phrase[:_MAX_LETTERS]))

    def _has(self, letter: str) -> bool:
        shape = self._shape(letter)
        return letter.isprintable() and shape != self._missing and shape is not None and any(shape[1])

    def _look_up(self, letter: str) -> str:
        from unicodedata import normalize

        for candidate in (letter, normalize("NFKD", letter)[:1]):
            if candidate.isprintable() and self._shape(candidate) != self._missing:
                return self._replacements.setdefault(letter, candidate)
        return self._replacements.setdefault(letter, "?")

    def _shape(self, letter: str) -> tuple[tuple[int, int], bytes] | None:
        """Returns the size and pixels of a letter; None if the font raises an error for it (a bitmap font beyond Latin-1)."""
        try:
            mask = self.font.getmask(letter)
        except (UnicodeError, ValueError, OSError):
            return None
        return mask.size, bytes(mask)
