"""Judge ``detector``: scores ``ri`` with a detector in place of an LLM, Grounding DINO (arXiv 2303.05499) or OWLv2 (arXiv 2306.09683).

It looks in the picture for each phrase of the plan. :func:`gotr1_judges.grounding.planned_iou` makes the score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gotr1_core.chain import iou
from gotr1_core.data.pictures import shrink
from gotr1_core.policies.hub import find_weights
from gotr1_core.samples import IMAGE, Sample, SegmentName, Words
from gotr1_judges.answers import Box
from gotr1_judges.checkpoint import check_device, load_model, load_text_tokenizer, load_tokenizer, model_type_check, parameter_count
from gotr1_judges.families import load_processor
from gotr1_judges.grounding import as_fractions, phrases, planned_iou

if TYPE_CHECKING:
    from PIL.Image import Image

    from gotr1_judges.options import DetectorOptions

KINDS = {
    "grounding-dino": ("GroundingDinoForObjectDetection", "GroundingDinoProcessor", "longest", 0.25),
    "owlv2": ("Owlv2ForObjectDetection", "Owlv2Processor", "max_length", 0.1),
}
"""By ``model_type``: transformers' classes of model and processor, how text is padded, and the threshold in the authors' demonstrations."""
_MODEL_HINT = "give a Grounding DINO or an OWLv2 in transformers' format, such as IDEA-Research/grounding-dino-base"
MAX_CANDIDATE_BOXES = 50
"""At most this many boxes of a phrase are considered, the surest ones. No plan has more of one thing."""


class DetectorJudge:
    """Looks for each phrase of a chain in the picture separately."""

    rewards: Mapping[str, SegmentName] = {"ri": IMAGE}

    def __init__(self, options: DetectorOptions, *, device: torch.device | str = "cpu") -> None:
        import transformers

        weights = find_weights(options.model, key="model", check=model_type_check(KINDS, "detector", _MODEL_HINT, options.model))
        source = weights.folder or options.model
        name, processor, self.padding, threshold = KINDS[str(weights.config.get("model_type"))]
        tokenizer, images = load_text_tokenizer(source), load_processor(source)
        self.processor = getattr(transformers, processor)(images, tokenizer)
        self.model = load_model(source, name, options, device).requires_grad_(False)
        self.options, self.threshold = options, threshold if options.threshold is None else options.threshold

    @staticmethod
    def preflight(options: DetectorOptions, *, key: str = "judge") -> dict[str, int]:
        """Checks that the model exists and is a detector, before weights are loaded; returns its number of ``parameters`` if known."""
        where = f"{key}.model"
        check_device(options.device, f"{key}.device")
        weights = find_weights(options.model, key=where, check=model_type_check(KINDS, "detector", _MODEL_HINT, f"{where}={options.model}"))
        if weights.folder is not None:
            load_tokenizer(weights.folder)
            load_processor(weights.folder)
        return parameter_count(weights)

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """Returns ``ri`` in [0,1]: 0 for a chain that is malformed or has no boxes, NaN without a picture, chain or finite output."""
        return self.score_with_words(samples, names)[0]

    def score_with_words(self, samples: Sequence[Sample], names: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, list[Words]]]:
        """Returns scores as :meth:`score` does, and by name the boxes that were found for each sample."""
        searches = [(i, phrase) for i, sample in enumerate(samples) for phrase in phrases(sample.chain) if _searchable(sample)]
        detected: list[dict[str, list[Box] | None]] = [{} for _ in samples]
        pairs = [(image, phrase) for i, phrase in searches if (image := samples[i].image) is not None]
        for (i, phrase), boxes in zip(searches, self.locate(pairs), strict=True):
            detected[i][phrase] = boxes
        scores = [self._sample_score(sample, boxes_of) for sample, boxes_of in zip(samples, detected, strict=True)]
        lost = "the detector's output is not finite"
        words = [
            Words(boxes={phrase: found for phrase, found in boxes_of.items() if found}, problem=lost if None in boxes_of.values() else "")
            for boxes_of in detected
        ]
        return {name: list(scores) for name in names}, dict.fromkeys(names, words)

    @staticmethod
    def _sample_score(sample: Sample, detected: Mapping[str, Sequence[Box] | None]) -> float:
        if not sample.plan_known:
            return math.nan
        if not sample.chain.well_formed or not sample.chain.regions:
            return 0.0
        known = {phrase: boxes for phrase, boxes in detected.items() if boxes is not None}
        return math.nan if sample.image is None or len(known) < len(detected) else planned_iou(sample.chain, known)

    def locate(self, pairs: Sequence[tuple[Image, str]]) -> list[list[Box] | None]:
        """Returns the boxes of each phrase in its picture, as fractions, the surest first. Near duplicates are left out.

        None where the detector's output is NaN, as of a model that overflows in float16. A phrase of dots and question marks alone names
        nothing, so nothing is found.
        """
        named = [i for i, (_, phrase) in enumerate(pairs) if _caption(phrase)]
        order = sorted(named, key=lambda i: (pairs[i][0].size, len(pairs[i][1])))  # pictures of one size need no padding
        detected: list[list[Box] | None] = [[] for _ in pairs]
        for start in range(0, len(order), self.options.batch):
            batch = order[start : start + self.options.batch]
            for i, boxes in zip(batch, self._detect([pairs[i] for i in batch]), strict=True):
                detected[i] = boxes
        return detected

    @torch.no_grad()
    def _detect(self, pairs: Sequence[tuple[Image, str]]) -> list[list[Box] | None]:
        images = [shrink(image).convert("RGB") for image, _ in pairs]
        texts = [[_caption(phrase)] for _, phrase in pairs]
        inputs = self.processor(images=images, text=texts, padding=self.padding, truncation=True, return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        shapes = [(image.height, image.width) for image in images]
        outputs: Any = self.model(**inputs)
        results = self.processor.post_process_grounded_object_detection(outputs, threshold=self.threshold, target_sizes=shapes)
        lost = (outputs.logits.isnan().flatten(1).any(1) | outputs.pred_boxes.isnan().flatten(1).any(1)).tolist()  # padding is -inf
        rows = zip(results, images, lost, strict=True)
        return [None if bad else self._without_duplicates(result, image) for result, image, bad in rows]

    def _without_duplicates(self, result: Mapping[str, Any], image: Image) -> list[Box]:
        """Returns the boxes of a picture, the surest first, without those that overlap a surer one."""
        surest = sorted(zip(result["scores"].tolist(), result["boxes"].tolist(), strict=True), key=lambda pair: -pair[0])[
            :MAX_CANDIDATE_BOXES
        ]
        kept: list[Box] = []
        for box in as_fractions([tuple(corners) for _, corners in surest], (float(image.width), float(image.height))):
            if all(iou(box, other) <= self.options.overlap for other in kept):
                kept.append(box)
        return kept


def _caption(phrase: str) -> str:
    """Returns a phrase as one caption: a dot or question mark in it would end the caption."""
    return " ".join(re.sub(r"[.?]", " ", phrase).split())


def _searchable(sample: Sample) -> bool:
    """Returns true if there is a picture and a well-formed plan to look for in it."""
    return sample.image is not None and sample.chain.well_formed
