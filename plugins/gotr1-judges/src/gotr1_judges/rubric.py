"""Judges ``qwen-vl`` and ``internvl``: a multimodal LLM answers rubrics about plan and picture (GoT-R1, arXiv 2505.17022).

========  =====  ===============================================================================================================
reward    sees   the question
========  =====  ===============================================================================================================
``sem``   plan   does the chain, without its boxes, say what the prompt says?
``spa``   plan   is it arranged as the prompt says? The picture is a canvas with the chain's boxes and their names; before the question
                 stand the names that the canvas does not show whole
``ri``    image  where is each phrase of the chain? The score is the mean IoU with the planned boxes: :mod:`gotr1_judges.grounding`
``pi``    image  does the picture show what the prompt says?
========  =====  ===============================================================================================================

A malformed or empty chain has ``sem``, ``spa`` and ``ri`` 0. If a question cannot be asked or its answer cannot be read, the score is NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from gotr1_core.pictures.draw_chain import AUTO, draw_with_legend
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, SegmentName
from gotr1_judges import checkpoint
from gotr1_judges.answers import Box, read_boxes, read_list, read_score
from gotr1_judges.asking import Answerer, Question
from gotr1_judges.families import INTERN, QWEN, Family
from gotr1_judges.grounding import answered_fractions, phrases, planned_iou
from gotr1_judges.rubrics import REQUIREMENTS, WORDS, Rubric

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from gotr1_judges.options import RubricOptions

REWARDS: Mapping[str, SegmentName] = {"sem": PLAN, "spa": PLAN, "ri": IMAGE, "pi": IMAGE}
MAX_REQUIREMENTS = 16
LEGEND = "Names on labels in full, by the labels' numbers: "
METADATA = "requirements"
"""Key of a prompt's metadata for its own requirements, a list of sentences."""


class RubricJudge:
    """Asks an answerer, whose model may run anywhere.

    Args:
        answerer: answers the questions.
        rubrics: for every reward, and for ``requirements``.
        canvas: side in pixels of the canvas for ``spa``.
        font: for names on it that the built-in font lacks, see :func:`gotr1_core.pictures.draw_chain.draw_with_legend`.
        least_mass: minimum total probability of the allowed answer tokens, see `expected_score`.
    """

    rewards: Mapping[str, SegmentName] = REWARDS

    def __init__(
        self, answerer: Answerer, rubrics: Mapping[str, Rubric], *, canvas: int = 448, font: str = AUTO, least_mass: float = 0.1
    ) -> None:
        self.answerer, self.rubrics, self.canvas, self.font, self.least_mass = answerer, rubrics, canvas, font, least_mass
        self._listed: dict[str, list[str] | None] = {}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """Returns scores in [0,1], see the module's table; NaN for a question that cannot be asked or an answer that cannot be read."""
        return {name: self._scores(name, samples) for name in names}

    def _scores(self, name: str, samples: Sequence[Sample]) -> list[float]:
        scores = [score_without_asking(name, sample) for sample in samples]
        open_rows = [i for i, score in enumerate(scores) if score is None]
        open_samples = [samples[i] for i in open_rows]
        asked = self._grounding_scores(open_samples) if name == "ri" else self._rubric_scores(name, open_samples)
        score_of = dict(zip(open_rows, asked, strict=True))
        return [score_of[i] if score is None else score for i, score in enumerate(scores)]

    # -- verdicts -----------------------------------------------------------------------------------------------------------

    def _rubric_scores(self, name: str, samples: Sequence[Sample]) -> list[float]:
        """Returns for each sample the mean score of its questions: one question, or one for each requirement."""
        rubric = self.rubrics[name]
        requirements_of: list[list[str] | None] = [[""] for _ in samples]
        if "requirement" in rubric.fields:
            requirements_of = self._requirements([sample.prompt for sample in samples])
        questions, owners = [], []
        for i, (sample, requirements) in enumerate(zip(samples, requirements_of, strict=True)):
            image, legend = self._picture_for(name, sample)
            plan = sample.chain.without_boxes()
            for requirement in requirements or ():
                owners.append(i)
                parts = rubric.fill(prompt=sample.prompt.text, plan=plan, requirement=requirement)
                questions.append(Question(with_legend(parts, legend), image))
        sample_scores: list[list[float]] = [[] for _ in samples]
        for i, score in zip(owners, self._verdicts(rubric, questions), strict=True):
            sample_scores[i].append(score)
        return [sum(scores) / len(scores) if scores else math.nan for scores in sample_scores]

    def _picture_for(self, name: str, sample: Sample) -> tuple[Image | None, dict[int, str]]:
        """Returns the picture that a reward's question shows, and its legend."""
        if name == "spa":
            return draw_with_legend(sample.chain, (self.canvas, self.canvas), font=self.font)
        return None if name == "sem" else sample.image, {}

    def _verdicts(self, rubric: Rubric, questions: Sequence[Question]) -> list[float]:
        if rubric.kind == "score":
            return [math.nan if text is None else read_score(text) for text in self.answerer.answer(questions)]
        probabilities = self.answerer.word_probabilities(questions, WORDS[rubric.kind])
        return [expected_score(row, self.least_mass) for row in probabilities]

    def _requirements(self, prompts: Sequence[Prompt]) -> list[list[str] | None]:
        """Returns each prompt's requirements: those in its metadata, else those that the model lists. A text is asked about only once."""
        in_metadata = [p.metadata.get(METADATA) for p in prompts]
        new = dict.fromkeys(
            p.text for p, own in zip(prompts, in_metadata, strict=True) if not isinstance(own, list) and p.text not in self._listed
        )
        rubric = self.rubrics[REQUIREMENTS]
        answers = self.answerer.answer([Question(rubric.fill(prompt=text)) for text in new])
        for text, answer in zip(new, answers, strict=True):
            self._listed[text] = None if answer is None else (read_list(answer) or [])[:MAX_REQUIREMENTS]
        return [[*map(str, own)] if isinstance(own, list) else self._listed[p.text] for p, own in zip(prompts, in_metadata, strict=True)]

    # -- grounding ----------------------------------------------------------------------------------------------------------

    def locate(self, pairs: Sequence[tuple[Image, str]]) -> list[list[Box] | None]:
        """Returns the boxes of each phrase in its picture, as fractions of the picture.

        The list is empty if the model says that nothing is there. It is None if the answer cannot be read.
        """
        questions = [Question(self.rubrics["ri"].fill(phrase=phrase), image) for image, phrase in pairs]
        answers = [None if text is None else read_boxes(text) for text in self.answerer.answer(questions)]
        return [
            boxes if boxes is None else answered_fractions(boxes, self.answerer.extent(image))
            for (image, _), boxes in zip(pairs, answers, strict=True)
        ]

    def _grounding_scores(self, samples: Sequence[Sample]) -> list[float]:
        """Locates each phrase of a chain in the picture. One answer that cannot be read makes the sample's score NaN."""
        searches = [(i, phrase) for i, sample in enumerate(samples) for phrase in phrases(sample.chain)]
        answers: list[dict[str, list[Box] | None]] = [{} for _ in samples]
        pairs = [(image, phrase) for i, phrase in searches if (image := samples[i].image) is not None]  # all samples here have one
        for (i, phrase), boxes in zip(searches, self.locate(pairs), strict=True):
            answers[i][phrase] = boxes
        scores = []
        for sample, boxes_of in zip(samples, answers, strict=True):
            detected = {phrase: boxes for phrase, boxes in boxes_of.items() if boxes is not None}
            scores.append(planned_iou(sample.chain, detected) if len(detected) == len(boxes_of) else math.nan)
        return scores


def with_legend(parts: tuple[str, ...], legend: Mapping[int, str]) -> tuple[str, ...]:
    """Returns a question's parts after the legend of its canvas, unless that is empty. Its names are written as in JSON.

    Args:
        parts: see :class:`gotr1_judges.asking.Question`.
        legend: phrases by number.
    """
    if not legend:
        return parts
    named: list[str] = []
    lead = LEGEND
    for number, phrase in legend.items():
        text = json.dumps(phrase, ensure_ascii=False).encode(errors="backslashreplace").decode()  # half of a surrogate pair is no text
        named += [f'{lead}{number} is "', text[1:-1]]
        lead = '", '
    return (*named, f'".\n\n{parts[0]}', *parts[1:])


def score_without_asking(name: str, sample: Sample) -> float | None:
    """Returns the score if no question is needed, else None. It is 0 for a plan without content, and NaN if a needed picture is missing."""
    if name != "pi":
        chain = sample.chain
        empty = not chain.without_boxes() if name == "sem" else not chain.regions
        if empty or not chain.well_formed:
            return 0.0
    return math.nan if REWARDS[name] == IMAGE and sample.image is None else None


def expected_score(probabilities: Sequence[float] | None, least: float) -> float:
    """Returns the mean value of the allowed answers, weighted by their probabilities: sum p_k k / ((K - 1) sum p_k), in [0,1].

    Args:
        probabilities: p_k of the K allowed answers, from the worst (value 0) to the best (value 1); None if there is no answer.
        least: minimum of their sum. Below it the score is NaN, because the model would have said something else.
    """
    total = math.nan if probabilities is None else sum(probabilities)
    if probabilities is None or not total >= least or total == 0:
        return math.nan
    return sum(probability * value for value, probability in enumerate(probabilities)) / (len(probabilities) - 1) / total


class _InProcess(RubricJudge):
    """A judge whose model runs in this process."""

    family: ClassVar[Family]

    def __init__(self, options: RubricOptions, *, device: torch.device | str = "cpu") -> None:
        rubrics, answerer = checkpoint.load_answerer(options, self.family, device=device)
        super().__init__(answerer, rubrics, canvas=options.canvas, font=options.font, least_mass=options.least_mass)

    @classmethod
    def preflight(cls, options: RubricOptions, *, key: str = "judge") -> dict[str, int]:
        """Checks options and checkpoint before weights are loaded, see :func:`gotr1_judges.checkpoint.preflight`."""
        return checkpoint.preflight(options, cls.family, key)


class QwenJudge(_InProcess):
    """The judge ``qwen-vl``."""

    family = QWEN


class InternJudge(_InProcess):
    """The judge ``internvl``."""

    family = INTERN
