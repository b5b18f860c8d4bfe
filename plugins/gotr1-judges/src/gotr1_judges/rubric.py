"""Judges ``qwen-vl`` and ``internvl``: a multimodal LLM is asked about plan and picture, by rubrics (GoT-R1, arXiv 2505.17022).

========  =====  ===============================================================================================================
reward    sees   what is asked
========  =====  ===============================================================================================================
``sem``   plan   does the chain, boxes left out, say what the prompt says?
``spa``   plan   a canvas with the chain's boxes drawn on it by name: is it arranged as the prompt says?
``ri``    image  where is each phrase of the chain? The mean IoU with the planned boxes, see :mod:`gotr1_judges.grounding`
``pi``    image  does the picture show what the prompt says?
========  =====  ===============================================================================================================

A malformed chain has ``sem``, ``spa`` and ``ri`` 0, and so has an empty one; what could not be asked or read is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from gotr1_core.pictures.draw_chain import draw_chain
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, SegmentName
from gotr1_judges import checkpoint
from gotr1_judges.answers import Box, read_boxes, read_list, read_score
from gotr1_judges.asking import Answerer, Question
from gotr1_judges.families import INTERN, QWEN, Family
from gotr1_judges.grounding import as_fractions, followed, phrases
from gotr1_judges.rubrics import REQUIREMENTS, WORDS, Rubric

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from gotr1_judges.options import RubricOptions

REWARDS: Mapping[str, SegmentName] = {"sem": PLAN, "spa": PLAN, "ri": IMAGE, "pi": IMAGE}
MOST_REQUIREMENTS = 16
METADATA = "requirements"
"""Where a prompt may bring its requirements along: a list of sentences."""


class RubricJudge:
    """Asks an answerer, wherever its model runs. ``rubrics`` are those of every reward and of ``requirements``."""

    rewards: Mapping[str, SegmentName] = REWARDS

    def __init__(self, answerer: Answerer, rubrics: Mapping[str, Rubric], *, canvas: int = 448, least_mass: float = 0.1) -> None:
        self.answerer, self.rubrics, self.canvas, self.least_mass = answerer, rubrics, canvas, least_mass
        self._listed: dict[str, list[str] | None] = {}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """See the module's table; every score in [0,1], NaN where it could not be had."""
        return {name: self._scores(name, samples) for name in names}

    def _scores(self, name: str, samples: Sequence[Sample]) -> list[float]:
        scores = [beforehand(name, sample) for sample in samples]
        left = [i for i, score in enumerate(scores) if score is None]
        mine = [samples[i] for i in left]
        found = dict(zip(left, self._grounded(mine) if name == "ri" else self._judged(name, mine), strict=True))
        return [found[i] if score is None else score for i, score in enumerate(scores)]

    # -- verdicts -----------------------------------------------------------------------------------------------------------

    def _judged(self, name: str, samples: Sequence[Sample]) -> list[float]:
        """The mean of a sample's questions, of which there is one, or one for each requirement."""
        rubric = self.rubrics[name]
        listed: list[list[str] | None] = [[""] for _ in samples]
        if "requirement" in rubric.fields:
            listed = self._requirements([sample.prompt for sample in samples])
        questions, owners = [], []
        for i, (sample, requirements) in enumerate(zip(samples, listed, strict=True)):
            image = self._shown(name, sample)
            plan = sample.chain.without_boxes()
            for requirement in requirements or ():
                owners.append(i)
                questions.append(Question(rubric.fill(prompt=sample.prompt.text, plan=plan, requirement=requirement), image))
        mine: list[list[float]] = [[] for _ in samples]
        for i, score in zip(owners, self._verdicts(rubric, questions), strict=True):
            mine[i].append(score)
        return [sum(scores) / len(scores) if scores else math.nan for scores in mine]

    def _shown(self, name: str, sample: Sample) -> Image | None:
        if name == "sem":
            return None
        return draw_chain(sample.chain, (self.canvas, self.canvas)) if name == "spa" else sample.image

    def _verdicts(self, rubric: Rubric, questions: Sequence[Question]) -> list[float]:
        if rubric.kind == "score":
            return [math.nan if text is None else read_score(text) for text in self.answerer.answer(questions)]
        return [expectation(masses, self.least_mass) for masses in self.answerer.weigh(questions, WORDS[rubric.kind])]

    def _requirements(self, prompts: Sequence[Prompt]) -> list[list[str] | None]:
        """What each prompt requires: what it brings along, else what the model lists, which is asked once for a text."""
        brought = [p.metadata.get(METADATA) for p in prompts]
        new = dict.fromkeys(
            p.text for p, own in zip(prompts, brought, strict=True) if not isinstance(own, list) and p.text not in self._listed
        )
        rubric = self.rubrics[REQUIREMENTS]
        answers = self.answerer.answer([Question(rubric.fill(prompt=text)) for text in new])
        for text, answer in zip(new, answers, strict=True):
            self._listed[text] = None if answer is None else (read_list(answer) or [])[:MOST_REQUIREMENTS]
        return [[*map(str, own)] if isinstance(own, list) else self._listed[p.text] for p, own in zip(prompts, brought, strict=True)]

    # -- grounding ----------------------------------------------------------------------------------------------------------

    def locate(self, pairs: Sequence[tuple[Image, str]]) -> list[list[Box] | None]:
        """Where phrases are in pictures: boxes as fractions, none where the model says so, None where it cannot be told."""
        questions = [Question(self.rubrics["ri"].fill(phrase=phrase), image) for image, phrase in pairs]
        answers = [None if text is None else read_boxes(text) for text in self.answerer.answer(questions)]
        return [
            boxes if boxes is None else as_fractions(boxes, self.answerer.extent(image))
            for (image, _), boxes in zip(pairs, answers, strict=True)
        ]

    def _grounded(self, samples: Sequence[Sample]) -> list[float]:
        """Where each phrase of a chain is in the picture; one answer that cannot be read leaves the sample without a score."""
        asked = [(i, phrase) for i, sample in enumerate(samples) for phrase in phrases(sample.chain)]
        found: list[dict[str, list[Box] | None]] = [{} for _ in samples]
        pairs = [(image, phrase) for i, phrase in asked if (image := samples[i].image) is not None]  # else they were not asked
        for (i, phrase), boxes in zip(asked, self.locate(pairs), strict=True):
            found[i][phrase] = boxes
        scores = []
        for sample, mine in zip(samples, found, strict=True):
            known = {phrase: boxes for phrase, boxes in mine.items() if boxes is not None}
            scores.append(followed(sample.chain, known) if len(known) == len(mine) else math.nan)
        return scores


def beforehand(name: str, sample: Sample) -> float | None:
    """A score that needs no question: 0 where the plan says nothing that could be judged, NaN without the picture; else None."""
    if name != "pi":
        chain = sample.chain
        empty = not chain.without_boxes() if name == "sem" else not chain.regions
        if empty or not chain.well_formed:
            return 0.0
    return math.nan if REWARDS[name] == IMAGE and sample.image is None else None


def expectation(masses: Sequence[float] | None, least: float) -> float:
    """The mean of the answers' values, 0 for the first to 1 for the last, weighed by their probabilities among these answers.

    NaN where all of them together are less probable than ``least``: the model would have said something else.
    """
    total = math.nan if masses is None else sum(masses)
    if masses is None or not total >= least or total == 0:
        return math.nan
    return sum(mass * value for value, mass in enumerate(masses)) / (len(masses) - 1) / total


class _InProcess(RubricJudge):
    """One whose model runs here."""

    family: ClassVar[Family]

    def __init__(self, options: RubricOptions, *, device: torch.device | str = "cpu") -> None:
        rubrics, answerer = checkpoint.load(options, self.family, device=device)
        super().__init__(answerer, rubrics, canvas=options.canvas, least_mass=options.least_mass)

    @classmethod
    def preflight(cls, options: RubricOptions, *, key: str = "judge") -> dict[str, int]:
        """What can be told before weights are loaded; see :func:`gotr1_judges.checkpoint.preflight`."""
        return checkpoint.preflight(options, cls.family, key)


class QwenJudge(_InProcess):
    """The judge ``qwen-vl``."""

    family = QWEN


class InternJudge(_InProcess):
    """The judge ``internvl``."""

    family = INTERN
