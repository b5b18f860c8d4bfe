"""Judge ``detector``: Grounding DINO (arXiv 2303.05499) or OWLv2 (arXiv 2306.09683) finds what was planned, in place of an LLM: ``ri``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gotr1_core.chain import iou
from gotr1_core.policies.hub import find_weights
from gotr1_core.samples import IMAGE, Sample, SegmentName
from gotr1_judges.answers import Box
from gotr1_judges.checkpoint import load_model, load_tokenizer, only, sizes
from gotr1_judges.families import load_processor
from gotr1_judges.grounding import as_fractions, followed, phrases

if TYPE_CHECKING:
    from PIL.Image import Image

    from gotr1_judges.options import DetectorOptions

KINDS = {
    "grounding-dino": ("GroundingDinoForObjectDetection", "GroundingDinoProcessor", "longest", 0.25),
    "owlv2": ("Owlv2ForObjectDetection", "Owlv2Processor", "max_length", 0.1),
}
"""transformers' classes by ``model_type``, how they pad text, and the threshold that their authors' demonstrations use."""
_GIVE = "give a Grounding DINO or an OWLv2 in transformers' format, such as IDEA-Research/grounding-dino-base"
MOST = 50
"""Candidates of a phrase that are looked at; a picture with more of one thing is no plan's."""


class DetectorJudge:
    """Every phrase of a chain is looked for in the picture by itself."""

    rewards: Mapping[str, SegmentName] = {"ri": IMAGE}

    def __init__(self, options: DetectorOptions, *, device: torch.device | str = "cpu") -> None:
        import transformers

        weights = find_weights(options.model, key="model", check=only(KINDS, "detector", _GIVE, options.model))
        source = weights.folder or options.model
        name, processor, self.padding, threshold = KINDS[str(weights.config.get("model_type"))]
        tokenizer, images = load_tokenizer(source), load_processor(source)
        self.processor = getattr(transformers, processor)(images, tokenizer)
        self.model = load_model(source, name, options, device).requires_grad_(False)
        self.options, self.threshold = options, threshold if options.threshold is None else options.threshold

    @staticmethod
    def preflight(options: DetectorOptions, *, key: str = "judge") -> dict[str, int]:
        """Refuses what is no detector or not there, with a `UsageError`."""
        where = f"{key}.model"
        weights = find_weights(options.model, key=where, check=only(KINDS, "detector", _GIVE, f"{where}={options.model}"))
        if weights.folder is not None:
            load_tokenizer(weights.folder)
            load_processor(weights.folder)
        return sizes(weights)

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """``ri`` in [0,1]: 0 of a chain that is malformed or has no boxes, NaN without a picture."""
        asked = [(i, phrase) for i, sample in enumerate(samples) for phrase in phrases(sample.chain) if _open(sample)]
        found: list[dict[str, list[Box]]] = [{} for _ in samples]
        pairs = [(image, phrase) for i, phrase in asked if (image := samples[i].image) is not None]
        for (i, phrase), boxes in zip(asked, self.locate(pairs), strict=True):
            found[i][phrase] = boxes
        scores = [self._one(sample, mine) for sample, mine in zip(samples, found, strict=True)]
        return {name: list(scores) for name in names}

    @staticmethod
    def _one(sample: Sample, found: Mapping[str, Sequence[Box]]) -> float:
        if not sample.chain.well_formed or not sample.chain.regions:
            return 0.0
        return math.nan if sample.image is None else followed(sample.chain, found)

    def locate(self, pairs: Sequence[tuple[Image, str]]) -> list[list[Box]]:
        """Where phrases are in pictures: boxes as fractions, the surest first, near duplicates left out."""
        order = sorted(range(len(pairs)), key=lambda i: (pairs[i][0].size, len(pairs[i][1])))  # pictures of one size need no padding
        found: list[list[Box]] = [[] for _ in pairs]
        for start in range(0, len(order), self.options.batch):
            part = order[start : start + self.options.batch]
            for i, boxes in zip(part, self._batch([pairs[i] for i in part]), strict=True):
                found[i] = boxes
        return found

    @torch.no_grad()
    def _batch(self, pairs: Sequence[tuple[Image, str]]) -> list[list[Box]]:
        images = [image.convert("RGB") for image, _ in pairs]
        texts = [[" ".join(phrase.replace(".", " ").split())] for _, phrase in pairs]  # a dot would end the phrase
        inputs = self.processor(images=images, text=texts, padding=self.padding, truncation=True, return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        shapes = [(image.height, image.width) for image in images]
        outputs: Any = self.model(**inputs)
        results = self.processor.post_process_grounded_object_detection(outputs, threshold=self.threshold, target_sizes=shapes)
        return [self._kept(result, image) for result, image in zip(results, images, strict=True)]

    def _kept(self, result: Mapping[str, Any], image: Image) -> list[Box]:
        sure = sorted(zip(result["scores"].tolist(), result["boxes"].tolist(), strict=True), key=lambda pair: -pair[0])[:MOST]
        kept: list[Box] = []
        for box in as_fractions([tuple(corners) for _, corners in sure], (float(image.width), float(image.height))):
            if all(iou(box, other) <= self.options.overlap for other in kept):
                kept.append(box)
        return kept


def _open(sample: Sample) -> bool:
    """Whether there is anything to look for, and where."""
    return sample.image is not None and sample.chain.well_formed
