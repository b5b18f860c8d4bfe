"""Judges ``hps``, ``pickscore`` and ``clip``: how near a CLIP finds picture and prompt, from 0 to 1.

The score is ``(cosine - low) / (high - low)``, cut to [0,1]. Nothing is subtracted by default, so that in a product such as the paper's
``… * hps`` a factor counts by how much it differs in proportion, as the raw scores do; and ``high`` only sets the scale:

=============  ======  ==================================================================================================
judge          high    why
=============  ======  ==================================================================================================
``clip``       0.4     CLIPScore is 2.5 * max(cosine, 0) (arXiv 2104.08718)
``pickscore``  0.26    100 * cosine is divided by 26 where it is used as a reward (Flow-GRPO, arXiv 2505.05470)
``hps``        0.4     ours: HPS v2.1 (arXiv 2306.09341) gives good pictures about 0.3
=============  ======  ==================================================================================================

A prompt that is longer than CLIP's 77 tokens is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gotr1_core.errors import UsageError
from gotr1_core.policies.hub import find_weights
from gotr1_core.samples import IMAGE, Sample, SegmentName
from gotr1_judges.checkpoint import dtype_of, load_model, load_tokenizer, only, sizes
from gotr1_judges.families import load_processor
from gotr1_judges.open_clip import is_open_clip, load_open_clip

if TYPE_CHECKING:
    from gotr1_judges.options import PreferenceOptions

_GIVE = "give a CLIP in transformers' format, such as openai/clip-vit-large-patch14"


class PreferenceJudge:
    """A CLIP of transformers. ``rewards`` has one name, the judge's own."""

    name: ClassVar[str]
    rewards: Mapping[str, SegmentName]

    def __init__(self, options: PreferenceOptions, *, device: torch.device | str = "cpu") -> None:
        weights = find_weights(options.model, key="model", check=only(("clip",), self.name, _GIVE, options.model))
        source = weights.folder or options.model
        self.options, self.tokenizer, self.processor = options, load_tokenizer(source), load_processor(source)
        if isinstance(source, Path) and is_open_clip(source):
            place = torch.device(options.device or device)
            self.model = load_open_clip(source).to(place, dtype_of(options.dtype, place)).eval()
        else:
            self.model = load_model(source, "CLIPModel", options, device)
        self.model.requires_grad_(False)
        self.longest: int = self.model.config.text_config.max_position_embeddings

    @classmethod
    def preflight(cls, options: PreferenceOptions, *, key: str = "judge") -> dict[str, int]:
        """Refuses what is no CLIP or not there, with a `UsageError`."""
        where = f"{key}.model"
        cls.check_released(options, where)
        weights = find_weights(options.model, key=where, check=only(("clip",), cls.name, _GIVE, f"{where}={options.model}"))
        if weights.folder is not None:
            load_tokenizer(weights.folder)
            load_processor(weights.folder)
        return sizes(weights)

    @staticmethod
    def check_released(options: PreferenceOptions, where: str) -> None:
        """Refuses a name under which there is nothing that could be loaded."""
        del options, where

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """One score in [0,1] for every sample, NaN without a picture."""
        scores = [math.nan] * len(samples)
        rows = [i for i, sample in enumerate(samples) if sample.image is not None]
        for start in range(0, len(rows), self.options.batch):
            part = rows[start : start + self.options.batch]
            for i, cosine in zip(part, self.cosines([samples[i] for i in part]), strict=True):
                scores[i] = (cosine - self.options.low) / (self.options.high - self.options.low)
        return {name: [score if math.isnan(score) else min(1.0, max(0.0, score)) for score in scores] for name in names}

    @torch.no_grad()
    def cosines(self, samples: Sequence[Sample]) -> list[float]:
        """Cosines of samples' pictures and prompts."""
        images = [sample.image.convert("RGB") for sample in samples if sample.image is not None]
        texts = [sample.prompt.text for sample in samples]
        words = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        found: Any = self.model(
            input_ids=words["input_ids"].to(self.model.device),
            attention_mask=words["attention_mask"].to(self.model.device),
            pixel_values=pixels.to(self.model.device, self.model.dtype),
        )
        return list((found.image_embeds.float() * found.text_embeds.float()).sum(-1).tolist())  # both are of length 1


class HpsJudge(PreferenceJudge):
    """The judge ``hps``: HPS v2.1, whose release is a pickle, which is never loaded."""

    name = "hps"
    rewards: Mapping[str, SegmentName] = {"hps": IMAGE}

    @staticmethod
    def check_released(options: PreferenceOptions, where: str) -> None:
        if options.model == "xswu/HPSv2" and not Path(options.model).is_dir():
            raise UsageError(
                f"{where}: HPS v2.1 is released as a pickle, which gotr1 never loads",
                hint=f"docs/judges.md says how to make a folder of safetensors of it; then {where}=DIR",
            )


class PickScoreJudge(PreferenceJudge):
    """The judge ``pickscore`` (arXiv 2305.01569)."""

    name = "pickscore"
    rewards: Mapping[str, SegmentName] = {"pickscore": IMAGE}


class ClipJudge(PreferenceJudge):
    """The judge ``clip``."""

    name = "clip"
    rewards: Mapping[str, SegmentName] = {"clip": IMAGE}
