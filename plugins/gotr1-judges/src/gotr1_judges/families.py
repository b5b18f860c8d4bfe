"""What families of multimodal LLMs differ in: how a picture becomes inputs and placeholders, and in what units boxes are answered.

The combined processors need torchvision, which gotr1 does not; tokenizer and image processor are used apart, and placeholders
expanded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gotr1_core.errors import UsageError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

THOUSANDTHS = (1000.0, 1000.0)


class Eyes(Protocol):
    """How a model sees a picture. ``own_positions``: it makes the positions of a text with pictures itself, and may not be given any."""

    own_positions: bool

    def placeholders(self, image: Image) -> list[int]:
        """The token ids that stand for it, in the place of the one that the chat template writes. `ValueError`: it cannot be seen."""
        ...

    def inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """What the model's forward pass takes for pictures, in the order of their placeholders."""
        ...

    def extent(self, image: Image) -> tuple[float, float]:
        """Width and height of the picture in the unit of the model's boxes."""
        ...


class QwenEyes:
    """Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL: as many placeholders as a picture has merged patches.

    Boxes of the former are in pixels of the picture as it was resized for the model, those of the latter in thousandths.
    """

    own_positions = True

    def __init__(self, processor: Any, config: Any, tokenizer: Any) -> None:
        del tokenizer
        self.processor, self.token = processor, config.image_token_id
        self.pixels = config.model_type == "qwen2_5_vl"

    def placeholders(self, image: Image) -> list[int]:
        patches = self.processor.get_number_of_image_patches(image.height, image.width)
        return [self.token] * (patches // self.processor.merge_size**2)

    def inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        found = self.processor([image.convert("RGB") for image in images], return_tensors="pt")
        return {"pixel_values": found["pixel_values"], "image_grid_thw": found["image_grid_thw"]}

    def extent(self, image: Image) -> tuple[float, float]:
        if not self.pixels:
            return THOUSANDTHS
        grid = self.inputs([image])["image_grid_thw"][0]
        return float(grid[2] * self.processor.patch_size), float(grid[1] * self.processor.patch_size)


class InternEyes:
    """InternVL3 (arXiv 2504.10479): a picture is one tile of fixed size, never cropped into several. Boxes are in thousandths."""

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
        del image
        return self.ids

    def inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        found = self.processor([i.convert("RGB") for i in images], size=self.size, crop_to_patches=False, return_tensors="pt")
        return {"pixel_values": found["pixel_values"]}

    def extent(self, image: Image) -> tuple[float, float]:
        del image
        return THOUSANDTHS


@dataclass(frozen=True)
class Family:
    """A family that one judge loads. ``classes`` are transformers', by the ``model_type`` of a config; ``give`` says what to give it."""

    name: str
    classes: Mapping[str, str]
    eyes: type[QwenEyes] | type[InternEyes]
    give: str


QWEN = Family(
    "qwen-vl",
    {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"},
    QwenEyes,
    "give a Qwen2.5-VL or Qwen3-VL in transformers' format, such as Qwen/Qwen2.5-VL-7B-Instruct",
)
INTERN = Family(
    "internvl",
    {"internvl": "InternVLForConditionalGeneration"},
    InternEyes,
    "give an InternVL3 in transformers' own format, such as OpenGVLab/InternVL3-8B-hf (the names end in -hf)",
)


def load_processor(source: Path | str) -> Any:
    """The image processor of a folder or a hub name, on PIL, which needs no torchvision.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil", local_files_only=isinstance(source, Path))
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"the image processor of {source} cannot be read: {first_line(error)}",
            hint="copy the original checkpoint's preprocessor_config.json into it",
        ) from error
