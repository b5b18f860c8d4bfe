"""How families of multimodal LLMs differ: how a picture becomes inputs and placeholder tokens, and the unit of the boxes in answers.

transformers' combined processors need torchvision, and gotr1 does not. So tokenizer and image processor are used separately, and the
placeholders are expanded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.pretrained import load_pretrained

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

THOUSANDTHS = (1000.0, 1000.0)


class PictureProcessor(Protocol):
    """Prepares pictures for a model.

    ``own_positions`` is true if the model computes position ids of texts with pictures itself. Then none may be passed.
    """

    own_positions: bool

    def placeholders(self, image: Image) -> list[int]:
        """Returns the token ids that stand for a picture. They replace the single image token of the chat template.

        Raises:
            ValueError: the model cannot take a picture of this size.
        """
        ...

    def inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Returns the model's keyword arguments for pictures, in the order of their placeholders.

        ``pixel_values`` is ``[B, 3, H, W]`` (InternVL), or ``[patches, D]`` with ``image_grid_thw [B, 3]`` (Qwen).
        """
        ...

    def extent(self, image: Image) -> tuple[float, float]:
        """Returns width and height of the picture in the unit of the model's boxes."""
        ...


class QwenPictures:
    """Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL: a placeholder for each merged patch of a picture.

    Boxes of Qwen2.5-VL are in pixels of the picture that was resized for the model. Boxes of Qwen3-VL are in thousandths.
    """

    own_positions = True

    def __init__(self, processor: Any, config: Any, tokenizer: Any) -> None:
        del tokenizer
        self.processor, self.token = processor, config.image_token_id
        self.boxes_in_pixels = config.model_type == "qwen2_5_vl"

    def placeholders(self, image: Image) -> list[int]:
        """Returns an image token for each merged patch."""
        patches = self.processor.get_number_of_image_patches(image.height, image.width)
        return [self.token] * (patches // self.processor.merge_size**2)

    def inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Returns ``pixel_values [patches, D]`` of all pictures and ``image_grid_thw [B, 3]``: (1, rows, columns) of patches."""
        processed = self.processor([image.convert("RGB") for image in images], return_tensors="pt")
        return {"pixel_values": processed["pixel_values"], "image_grid_thw": processed["image_grid_thw"]}

    def extent(self, image: Image) -> tuple[float, float]:
        """Returns the resized picture's width and height in pixels, or (1000, 1000) for Qwen3-VL."""
        if not self.boxes_in_pixels:
            return THOUSANDTHS
        grid = self.inputs([image])["image_grid_thw"][0]
        return float(grid[2] * self.processor.patch_size), float(grid[1] * self.processor.patch_size)


class InternPictures:
    """InternVL3 (arXiv 2504.10479): a picture is one tile of fixed size and is never cropped into several. Boxes are in thousandths."""

    own_positions = False

    def __init__(self, processor: Any, config: Any, tokenizer: Any) -> None:
        self.processor, self.token = processor, config.image_token_id
        vision = config.vision_config
        self.size = {"height": vision.image_size[0], "width": vision.image_size[1]}
        patches = (vision.image_size[0] // vision.patch_size[0]) * (vision.image_size[1] // vision.patch_size[1])
        count = int(patches * config.downsample_ratio**2)
        first = tokenizer.convert_tokens_to_ids(getattr(tokenizer, "start_image_token", "<img>"))
        last = tokenizer.convert_tokens_to_ids(getattr(tokenizer, "end_image_token", "</img>"))
        self.ids = [first, *[self.token] * count, last]

    def placeholders(self, image: Image) -> list[int]:
        """Returns the same tokens for every picture: start, the tile's tokens, end."""
        del image
        return self.ids

    def inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Returns ``pixel_values [B, 3, H, W]``, resized to the vision tower's size."""
        processed = self.processor([i.convert("RGB") for i in images], size=self.size, crop_to_patches=False, return_tensors="pt")
        return {"pixel_values": processed["pixel_values"]}

    def extent(self, image: Image) -> tuple[float, float]:
        """Returns (1000, 1000)."""
        del image
        return THOUSANDTHS


@dataclass(frozen=True)
class Family:
    """A family of models that one judge loads.

    ``name`` is the judge's. ``classes`` are transformers' classes by the ``model_type`` of a config. ``pictures`` prepares pictures for
    them. ``model_hint`` says which checkpoint to give.
    """

    name: str
    classes: Mapping[str, str]
    pictures: type[QwenPictures] | type[InternPictures]
    model_hint: str


QWEN = Family(
    "qwen-vl",
    {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"},
    QwenPictures,
    "give a Qwen2.5-VL or Qwen3-VL in transformers' format, such as Qwen/Qwen2.5-VL-7B-Instruct",
)
INTERN = Family(
    "internvl",
    {"internvl": "InternVLForConditionalGeneration"},
    InternPictures,
    "give an InternVL3 in transformers' own format, such as OpenGVLab/InternVL3-8B-hf (the names end in -hf)",
)


def load_processor(source: Path | str) -> Any:
    """Loads the image processor of a folder or a hub name, in its PIL version, which needs no torchvision.

    Raises:
        UsageError: there is no image processor, or it cannot be read.
    """
    from transformers import AutoImageProcessor

    try:
        return load_pretrained(AutoImageProcessor, source, backend="pil")
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"the image processor of {source} cannot be read: {first_line(error)}",
            hint="copy the original checkpoint's preprocessor_config.json into it",
        ) from error
