"""How a picture is sent, and in which unit a model behind a server names boxes in it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

FamilyName = Literal["qwen2.5-vl", "qwen3-vl", "internvl", "gpt", "other"]
THOUSANDTHS = (1000.0, 1000.0)


@dataclass(frozen=True)
class ServedFamily:
    """A family of models, as far as judges differ by it.

    Attributes:
        rubrics: the family's name in files of rubrics, such as ``ri-internvl.txt``.
        multiple: the sides of pictures that are sent are multiples of this, so that the server does not resize them.
        in_pixels: boxes are in pixels of the picture that was sent; else in thousandths of width and height.
    """

    rubrics: str
    multiple: int = 1
    in_pixels: bool = False


FAMILIES: dict[str, ServedFamily] = {
    "qwen2.5-vl": ServedFamily("qwen-vl", multiple=28, in_pixels=True),
    "qwen3-vl": ServedFamily("qwen-vl"),
    "internvl": ServedFamily("internvl"),
    "gpt": ServedFamily("gpt"),
    "other": ServedFamily("gpt"),
}
_NAMES: dict[str, tuple[str, ...]] = {
    "qwen2.5-vl": ("qwen2.5-vl", "qwen2_5_vl", "qwen2.5vl"),
    "qwen3-vl": ("qwen3-vl", "qwen3_vl", "qwen3vl"),
    "internvl": ("internvl",),
    "gpt": ("gpt-", "chatgpt"),
}


def family_of(model: str) -> str:
    """Returns the family that a model's name shows, a key of `FAMILIES`; ``other`` if it shows none."""
    name = model.lower().rpartition("/")[2]
    return next((family for family, words in _NAMES.items() if any(word in name for word in words)), "other")


@dataclass(frozen=True)
class PictureFormat:
    """How pictures are sent: with a longer side of at most ``side`` pixels, as PNG, with ``detail`` if the server is to get one."""

    side: int
    family: ServedFamily
    detail: str | None = None

    def sent_size(self, image: Image) -> tuple[int, int]:
        """Returns width and height in pixels of the picture that is sent."""
        scale = min(1.0, self.side / max(image.size))
        step, least = self.family.multiple, 2 * self.family.multiple if self.family.multiple > 1 else 1
        width, height = (max(least, round(side * scale / step) * step) for side in image.size)
        return width, height

    def png(self, image: Image) -> bytes:
        """Returns the picture as it is sent, encoded as PNG."""
        size = self.sent_size(image)
        picture = image.convert("RGB")
        if picture.size != size:
            from PIL.Image import Resampling

            picture = picture.resize(size, Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def base64_png(self, image: Image) -> str:
        """Returns `png` as base64."""
        return base64.b64encode(self.png(image)).decode()

    def part(self, image: Image) -> dict[str, object]:
        """Returns the part of a message that has the picture, as a data URL."""
        url: dict[str, str] = {"url": f"data:image/png;base64,{self.base64_png(image)}"}
        return {"type": "image_url", "image_url": url | ({"detail": self.detail} if self.detail else {})}

    def extent(self, image: Image) -> tuple[float, float]:
        """Returns width and height of the picture in the unit of the model's boxes."""
        width, height = self.sent_size(image)
        return (float(width), float(height)) if self.family.in_pixels else THOUSANDTHS
