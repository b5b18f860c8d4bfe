"""Judges ``hps``, ``pickscore`` and ``clip``: how similar picture and prompt are to a CLIP, from 0 to 1.

The score is ``(cosine - low) / (high - low)``, cut to [0,1]. By default ``low`` is 0, so nothing is subtracted. Then the score is
proportional to the raw score, also as a factor of a product such as the paper's ``… * hps``. ``high`` only sets the scale:

=============  ======  ==================================================================================================
judge          high    why
=============  ======  ==================================================================================================
``clip``       0.4     CLIPScore is 2.5 * max(cosine, 0) (arXiv 2104.08718)
``pickscore``  0.26    as a reward, 100 * cosine is divided by 26 (Flow-GRPO, arXiv 2505.05470)
``hps``        0.4     our choice: HPS v2.1 (arXiv 2306.09341) gives good pictures about 0.3
=============  ======  ==================================================================================================

A prompt longer than CLIP's 77 tokens is cut. What looks like a special token in it is text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gotr1_core.data.pictures import shrink
from gotr1_core.errors import UsageError
from gotr1_core.policies.hub import find_weights
from gotr1_core.samples import IMAGE, Sample, SegmentName
from gotr1_judges.checkpoint import (
    check_device,
    dtype_of,
    load_model,
    load_text_tokenizer,
    load_tokenizer,
    model_type_check,
    parameter_count,
)
from gotr1_judges.families import load_processor
from gotr1_judges.open_clip import is_open_clip, load_open_clip

if TYPE_CHECKING:
    from gotr1_judges.options import PreferenceOptions

_MODEL_HINT = "give a CLIP in transformers' format, such as openai/clip-vit-large-patch14"


class PreferenceJudge:
    """Scores pictures with a CLIP of transformers. Its only reward has the judge's name."""

    name: ClassVar[str]
    rewards: Mapping[str, SegmentName]

    def __init__(self, options: PreferenceOptions, *, device: torch.device | str = "cpu") -> None:
        weights = find_weights(options.model, key="model", check=model_type_check(("clip",), self.name, _MODEL_HINT, options.model))
        source = weights.folder or options.model
        self.options, self.tokenizer, self.processor = options, load_text_tokenizer(source), load_processor(source)
        if isinstance(source, Path) and is_open_clip(source):
            check_device(options.device, "device", loading=True)
            target = torch.device(options.device or device)
            self.model = load_open_clip(source).to(target, dtype_of(options.dtype, target)).eval()
        else:
            self.model = load_model(source, "CLIPModel", options, device)
        self.model.requires_grad_(False)
        self.max_text_tokens: int = self.model.config.text_config.max_position_embeddings

    @classmethod
    def preflight(cls, options: PreferenceOptions, *, key: str = "judge") -> dict[str, int]:
        """Checks that the model exists and is a CLIP, before weights are loaded; returns its number of ``parameters`` if known."""
        where = f"{key}.model"
        check_device(options.device, f"{key}.device")
        cls.check_released(options, where)
        weights = find_weights(
            options.model, key=where, check=model_type_check(("clip",), cls.name, _MODEL_HINT, f"{where}={options.model}")
        )
        if weights.folder is not None:
            load_tokenizer(weights.folder)
            load_processor(weights.folder)
        return parameter_count(weights)

    @staticmethod
    def check_released(options: PreferenceOptions, where: str) -> None:
        """Raises an error if the model's released files cannot be loaded. Most can.

        Args:
            options: they name the model.
            where: the option's place in the config, for the message.
        """
        del options, where

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """Returns a score in [0,1] for every sample, NaN without a picture."""
        scores = [math.nan] * len(samples)
        with_picture = [i for i, sample in enumerate(samples) if sample.image is not None]
        for start in range(0, len(with_picture), self.options.batch):
            batch = with_picture[start : start + self.options.batch]
            for i, cosine in zip(batch, self.cosines([samples[i] for i in batch]), strict=True):
                scores[i] = (cosine - self.options.low) / (self.options.high - self.options.low)
        return {name: [score if math.isnan(score) else min(1.0, max(0.0, score)) for score in scores] for name in names}

    @torch.no_grad()
    def cosines(self, samples: Sequence[Sample]) -> list[float]:
        """Returns the cosine of picture and prompt for each sample, in [-1,1]. Every sample must have a picture."""
        images = [shrink(sample.image).convert("RGB") for sample in samples if sample.image is not None]
        texts = [sample.prompt.text for sample in samples]
        words = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_text_tokens, return_tensors="pt")
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        output: Any = self.model(
            input_ids=words["input_ids"].to(self.model.device),
            attention_mask=words["attention_mask"].to(self.model.device),
            pixel_values=pixels.to(self.model.device, self.model.dtype),
        )
        return list((output.image_embeds.float() * output.text_embeds.float()).sum(-1).tolist())  # both have length 1


class HpsJudge(PreferenceJudge):
    """The judge ``hps``: HPS v2.1. Its release is a pickle, and gotr1 never loads pickles."""

    name = "hps"
    rewards: Mapping[str, SegmentName] = {"hps": IMAGE}

    @staticmethod
    def check_released(options: PreferenceOptions, where: str) -> None:
        """Refuses the released HPS v2.1, which is a pickle.

        Raises:
            UsageError: the model is ``xswu/HPSv2`` and there is no folder of that name.
        """
        if options.model == "xswu/HPSv2" and not Path(options.model).is_dir():
            raise UsageError(
                f"{where}: HPS v2.1 is released as a pickle, which gotr1 never loads",
                hint=f"docs/judges.md shows how to convert it to a folder of safetensors; then set {where}=DIR",
            )


class PickScoreJudge(PreferenceJudge):
    """The judge ``pickscore`` (arXiv 2305.01569)."""

    name = "pickscore"
    rewards: Mapping[str, SegmentName] = {"pickscore": IMAGE}


class ClipJudge(PreferenceJudge):
    """The judge ``clip``."""

    name = "clip"
    rewards: Mapping[str, SegmentName] = {"clip": IMAGE}
