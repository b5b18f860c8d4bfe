"""Picture files as RGB images: upright, 8 bits a channel, without transparency, not too large. Broken metadata is ignored."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from gotr1_core.engine.files import readable_file
from gotr1_core.errors import UsageError

FORMATS, SUFFIXES = ("PNG", "JPEG", "WEBP"), (".png", ".jpg", ".jpeg", ".webp")
HINT = "give PNG, JPEG or WebP files, or a folder of them"
ORIENTATION = 0x0112  # the EXIF tag
_TURN = Image.Transpose
UPRIGHT = {
    **{2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE},
    **{6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90},
}
Result = TypeVar("Result")
MOST_PIXELS = 89_478_485
"""Pixels of the largest picture that is read. It is Pillow's own limit: such a picture takes 0.36 GB, and its file may be small."""
LARGEST_SIDE = 2048
"""Longer side, in pixels, of the largest picture that a judge or a policy gets. No model that gotr1 knows looks at more."""


def named_picture(folder: Path, name: str, root: Path | None = None, *, hint: str) -> Path:
    """Returns the path of a picture that a data file names.

    Args:
        folder: the data file's folder, which ``name`` is relative to.
        name: what the data file says.
        root: the folder that the picture must lie in, also when links are followed; the data file's if not given.
        hint: how to allow another folder, for the message.

    Raises:
        UsageError: the picture lies elsewhere.
    """
    path, allowed = folder / name, folder if root is None else root
    try:
        lies_inside = path.resolve().is_relative_to(allowed.resolve())
    except (OSError, ValueError, RuntimeError):  # not a path, or links in a circle
        lies_inside = False
    if not lies_inside:
        raise UsageError(f"the picture {name[:100]!r} does not lie in {allowed}", hint=hint)
    return path


def read_picture(path: Path) -> Image.Image:
    """Returns a PNG, JPEG or WebP file as RGB: turned upright as its EXIF data say, 16 bits scaled to 8, transparent pixels on white.

    A picture with a side of more than :data:`LARGEST_SIDE` pixels is shrunk to it.

    Raises:
        UsageError: the file is missing, is no such picture, has more than :data:`MOST_PIXELS` pixels, or its pixels are damaged. Broken
            metadata is ignored.
    """
    return _opened(path, _upright)


def shrink(image: Image.Image, side: int = LARGEST_SIDE) -> Image.Image:
    """Returns the picture itself if no side is longer than ``side`` pixels, else a smaller one of the same shape."""
    longest = max(image.size)
    if longest <= side:
        return image
    size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def check_picture(path: Path) -> None:
    """Checks that a file begins as a picture does. It decodes no pixels, so it is fast.

    Raises:
        UsageError: the file is missing, is no such picture, or has more than :data:`MOST_PIXELS` pixels.
    """
    _opened(path, lambda _: None)


def _opened(path: Path, use: Callable[[Image.Image], Result]) -> Result:
    """What ``use`` returns for the picture in a file. If reading it fails, it is read once more without its metadata."""
    try:
        with readable_file(path, hint=HINT) as file:
            path = file
        try:
            with path.open("rb") as stream:  # Pillow would leave it open if it cannot be read
                return _use(stream, use)
        except Exception as error:
            if isinstance(error, UsageError | Image.DecompressionBombError) or (isinstance(error, OSError) and error.strerror):
                raise
            with suppress(Exception):  # Pillow lets errors of all kinds pass, so the first one is reported
                return _use(io.BytesIO(_without_metadata(path.read_bytes())), use)
            raise
    except UsageError:
        raise
    except Image.DecompressionBombError as error:  # from below, or from Pillow at twice as many; both say the number first
        pixels = int(re.findall(r"\d+", str(error))[0])
        size, most = f"{pixels / 1e6:,.0f} megapixels", f"{MOST_PIXELS / 1e6:.0f}"
        hint = f"shrink it: {LARGEST_SIDE} x {LARGEST_SIDE} pixels are enough for every judge"
        raise UsageError(f"{path} is too large: {size}, and at most {most} are read", hint=hint) from None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not a PNG, JPEG or WebP picture", hint=HINT) from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UsageError(f"cannot read {path}: {error.strerror}", hint=HINT) from None
        raise UsageError(f"{path} is damaged: {' '.join(str(error).split())}", hint=HINT) from None


def _use(file: IO[bytes], use: Callable[[Image.Image], Result]) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of broken metadata
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such a picture is refused
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
            return use(image)


def _upright(image: Image.Image) -> Image.Image:
    image.draft(None, (LARGEST_SIDE, LARGEST_SIDE))  # a JPEG is decoded at an eighth, a quarter or half of its size, if that is enough
    image.load()
    rgb = _rgb(image)
    rgb.info.clear()  # among them the orientation, which nobody shall obey twice
    turn = None
    with suppress(Exception):  # broken EXIF data say nothing
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    return rgb if turn is None else rgb.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB, shrunk as early as its pixels can be averaged: a copy of a large one takes hundreds of MB."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    transparent = "transparency" in image.info or bool({"A", "a"} & set(image.getbands()))
    if "transparency" in image.info or image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if transparent else "RGB")
    image = shrink(image)
    if not transparent:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 bits as one of 8, with an alpha channel if one value is transparent. Pillow would cut the values off at 255."""
    wide = np.asarray(image)
    grey = Image.fromarray(np.uint8(wide >> 8))
    if "transparency" not in image.info:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.uint8(255) * (wide != image.info["transparency"]).astype(np.uint8))))


def _without_metadata(data: bytes) -> bytes:
    """A PNG's or a JPEG's bytes with only those parts that its pixels need. Other formats are returned as they are."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        parts, at = [data[:8]], 8
        while at < len(data):
            end = at + 12 + int.from_bytes(data[at : at + 4])
            if data[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
                parts.append(data[at:end])
            at = end
        return b"".join(parts)
    if data[:2] != b"\xff\xd8":
        return data
    parts, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:  # up to the first scan
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] not in (*range(0xE1, 0xEE), 0xEF, 0xFE):  # APP1 to APP13 and APP15, comments; APP14 says how colours are stored
            parts.append(data[at:end])
        at = end
    return b"".join([*parts, data[at:]])
