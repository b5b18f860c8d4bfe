"""Picture files as RGB images: upright, 8 bits a channel, without transparency. Broken metadata is ignored."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

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


def read_picture(path: Path) -> Image.Image:
    """Returns a PNG, JPEG or WebP file as RGB: turned upright as its EXIF data say, 16 bits scaled to 8, transparent pixels on white.

    Raises:
        UsageError: the file is missing, is no such picture, or its pixels are damaged. Broken metadata is ignored.
    """
    return _opened(path, _upright)


def check_picture(path: Path) -> None:
    """Checks that a file begins as a picture does. It decodes no pixels, so it is fast.

    Raises:
        UsageError: the file is missing or is no such picture.
    """
    _opened(path, lambda _: None)


def _opened(path: Path, use: Callable[[Image.Image], Result]) -> Result:
    """What ``use`` returns for the picture in a file. If reading it fails, it is read once more without its metadata."""
    try:
        try:
            return _use(path, use)
        except Exception as error:
            if isinstance(error, OSError) and error.strerror:
                raise
            with suppress(Exception):  # Pillow lets errors of all kinds pass, so the first one is reported
                return _use(io.BytesIO(_without_metadata(path.read_bytes())), use)
            raise
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not a PNG, JPEG or WebP picture", hint=HINT) from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UsageError(f"cannot read {path}: {error.strerror}", hint=HINT) from None
        raise UsageError(f"{path} is damaged: {' '.join(str(error).split())}", hint=HINT) from None


def _use(file: Path | io.BytesIO, use: Callable[[Image.Image], Result]) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of broken metadata
        with Image.open(file, formats=FORMATS) as image:
            return use(image)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    rgb = _rgb(image)
    rgb.info.clear()  # among them the orientation, which nobody shall obey twice
    turn = None
    with suppress(Exception):  # broken EXIF data say nothing
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    return rgb if turn is None else rgb.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut them off at 255
        wide = np.asarray(image)
        opaque = Image.fromarray(np.uint8(255 * (wide != image.info.get("transparency", -1))))
        image = Image.merge("LA", (Image.fromarray(np.uint8(wide >> 8)), opaque))
    if "transparency" not in image.info and not {"A", "a"} & set(image.getbands()):
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


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
