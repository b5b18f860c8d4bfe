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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from gotr1_core.data.pictures import shrink
from gotr1_core.pictures.draw_chain import AUTO, draw_with_legend
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, SegmentName, Words
from gotr1_judges import checkpoint
from gotr1_judges.answers import Box, read_boxes, read_list, read_reason, read_score
from gotr1_judges.asking import NOT_ASKED, Answerer, NoAnswer, Question
from gotr1_judges.families import INTERN, QWEN, Family
from gotr1_judges.grounding import answered_fractions, phrases, planned_iou
from gotr1_judges.rubrics import REQUIREMENTS, WORDS, Rubric

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from gotr1_judges.options import RubricOptions

REWARDS: Mapping[str, SegmentName] = {"sem": PLAN, "spa": PLAN, "ri": IMAGE, "pi": IMAGE}
MAX_REQUIREMENTS = 16
Verdict: TypeAlias = tuple[float, Words]
"""A score in [0,1] or NaN, and the words beside it."""
UNREADABLE = "unreadable"
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
    cached = False

    def __init__(
        self, answerer: Answerer, rubrics: Mapping[str, Rubric], *, canvas: int = 448, font: str = AUTO, least_mass: float = 0.1
    ) -> None:
        self.answerer, self.rubrics, self.canvas, self.font, self.least_mass = answerer, rubrics, canvas, font, least_mass
        self._listed: dict[str, list[str] | None] = {}

    def cache_key(self) -> dict[str, Any] | None:
        """Returns the texts of the rubrics, and what the answerer adds in a function of this name; None if answers must not be kept."""
        own: Any = getattr(self.answerer, "cache_key", dict)()
        return None if own is None else {"rubrics": {name: repr(rubric) for name, rubric in self.rubrics.items()}, "answerer": own}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """Returns scores in [0,1], see the module's table; NaN for a question that cannot be asked or an answer that cannot be read."""
        return self.score_with_words(samples, names)[0]

    def score_with_words(self, samples: Sequence[Sample], names: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, list[Words]]]:
        """Returns scores as :meth:`score` does, and by name what the model said about each sample."""
        said = {name: self._verdicts_of(name, samples) for name in names}
        return {n: [score for score, _ in said[n]] for n in names}, {n: [words for _, words in said[n]] for n in names}

    def _verdicts_of(self, name: str, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts = [verdict_without_asking(name, sample) for sample in samples]
        open_rows = [i for i, verdict in enumerate(verdicts) if verdict is None]
        open_samples = [samples[i] for i in open_rows]
        asked = self._grounding_verdicts(open_samples) if name == "ri" else self._rubric_verdicts(name, open_samples)
        verdict_of = dict(zip(open_rows, asked, strict=True))
        return [verdict_of[i] if verdict is None else verdict for i, verdict in enumerate(verdicts)]

    # -- verdicts -----------------------------------------------------------------------------------------------------------

    def _rubric_verdicts(self, name: str, samples: Sequence[Sample]) -> list[Verdict]:
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
                owners.append((i, requirement))
                parts = rubric.fill(prompt=sample.prompt.text, plan=plan, requirement=requirement)
                questions.append(Question(with_legend(parts, legend), image, rubric.kind))
        of_sample: list[list[tuple[str, Verdict]]] = [[] for _ in samples]
        for (i, requirement), verdict in zip(owners, self._ask(rubric, questions), strict=True):
            of_sample[i].append((requirement, verdict))
        return [mean_verdict(verdicts) for verdicts in of_sample]

    def _picture_for(self, name: str, sample: Sample) -> tuple[Image | None, dict[int, str]]:
        """Returns the picture that a reward's question shows, and its legend."""
        if name == "spa":
            return draw_with_legend(sample.chain, (self.canvas, self.canvas), font=self.font)
        return None if name == "sem" or sample.image is None else shrink(sample.image), {}

    def _ask(self, rubric: Rubric, questions: Sequence[Question]) -> list[Verdict]:
        if rubric.kind == "score":
            return [written_verdict(answer) for answer in self.answerer.answer(questions)]
        words = WORDS[rubric.kind]
        return [expected_verdict(row, words, self.least_mass) for row in self.answerer.word_probabilities(questions, words)]

    def _requirements(self, prompts: Sequence[Prompt]) -> list[list[str] | None]:
        """Returns each prompt's requirements: those in its metadata, else those that the model lists. A text is asked about only once."""
        in_metadata = [p.metadata.get(METADATA) for p in prompts]
        new = dict.fromkeys(
            p.text for p, own in zip(prompts, in_metadata, strict=True) if not isinstance(own, list) and p.text not in self._listed
        )
        rubric = self.rubrics[REQUIREMENTS]
        answers = self.answerer.answer([Question(rubric.fill(prompt=text), kind=rubric.kind) for text in new])
        for text, answer in zip(new, answers, strict=True):
            if not isinstance(answer, NoAnswer):  # what failed is asked again
                self._listed[text] = None if answer is None else (read_list(answer) or [])[:MAX_REQUIREMENTS]
        pairs = zip(prompts, in_metadata, strict=True)
        return [[*map(str, own)] if isinstance(own, list) else self._listed.get(prompt.text) for prompt, own in pairs]

    # -- grounding ----------------------------------------------------------------------------------------------------------

    def locate(self, pairs: Sequence[tuple[Image, str]]) -> list[list[Box] | None]:
        """Returns the boxes of each phrase in its picture, as fractions of the picture.

        The list is empty if the model says that nothing is there. It is None if the answer cannot be read.
        """
        return [boxes for boxes, _ in self._locate(pairs)]

    def _locate(self, pairs: Sequence[tuple[Image, str]]) -> list[tuple[list[Box] | None, Words]]:
        """Returns the boxes of :meth:`locate`. For those that are None, words say what the problem is."""
        pairs = [(shrink(image), phrase) for image, phrase in pairs]
        rubric = self.rubrics["ri"]
        questions = [Question(rubric.fill(phrase=phrase), image, rubric.kind) for image, phrase in pairs]
        located: list[tuple[list[Box] | None, Words]] = []
        for (image, _), answer in zip(pairs, self.answerer.answer(questions), strict=True):
            boxes = read_boxes(answer) if isinstance(answer, str) else None
            if boxes is None:
                located.append((None, Words(answer, problem=UNREADABLE) if isinstance(answer, str) else failure(answer)))
            else:
                located.append((answered_fractions(boxes, self.answerer.extent(image)), Words()))
        return located

    def _grounding_verdicts(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Locates each phrase of a chain in the picture. One answer that cannot be read makes the sample's score NaN."""
        searches = [(i, phrase) for i, sample in enumerate(samples) for phrase in phrases(sample.chain)]
        detected: list[dict[str, list[Box]]] = [{} for _ in samples]
        problems: list[Words] = [Words() for _ in samples]
        pairs = [(image, phrase) for i, phrase in searches if (image := samples[i].image) is not None]  # all samples here have one
        for (i, phrase), (boxes, words) in zip(searches, self._locate(pairs), strict=True):
            if boxes is not None:
                detected[i][phrase] = boxes
            elif not problems[i].problem:
                problems[i] = replace(words, reason=f"looking for {phrase}")
        return [
            (math.nan if words.problem else planned_iou(sample.chain, boxes), replace(words, boxes=boxes))
            for sample, boxes, words in zip(samples, detected, problems, strict=True)
        ]


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


def verdict_without_asking(name: str, sample: Sample) -> Verdict | None:
    """Returns score and words if no question is needed, else None.

    The score is 0 for a plan without content, and NaN if a needed picture is missing or a needed plan is not known.
    """
    if name != "pi":
        if not sample.plan_known:
            return math.nan, Words(problem="the plan is not known")
        chain = sample.chain
        empty = not chain.without_boxes() if name == "sem" else not chain.regions
        if empty or not chain.well_formed:
            return 0.0, Words(reason="the plan is malformed" if not chain.well_formed else "the plan says nothing of it")
    return (math.nan, Words(problem="there is no picture")) if REWARDS[name] == IMAGE and sample.image is None else None


def failure(answer: NoAnswer | None) -> Words:
    """Returns the words for a question without an answer."""
    answer = answer or NOT_ASKED
    return Words(answer.text, problem=answer.problem)


def written_verdict(answer: str | NoAnswer | None) -> Verdict:
    """Returns the score in a written answer, see :func:`gotr1_judges.answers.read_score`, with the answer and its reason."""
    if not isinstance(answer, str):
        return math.nan, failure(answer)
    score = read_score(answer)
    return score, Words(answer, read_reason(answer), problem=UNREADABLE if math.isnan(score) else "")


def expected_verdict(probabilities: Sequence[float] | NoAnswer | None, words: Sequence[str], least: float) -> Verdict:
    """Returns :func:`expected_score`, with the probability of each allowed answer."""
    if probabilities is None or isinstance(probabilities, NoAnswer):
        return math.nan, failure(probabilities)
    score, text = expected_score(probabilities, least), ", ".join(f"{w} {p:.3f}" for w, p in zip(words, probabilities, strict=False))
    return score, Words(text, problem="the allowed answers are too improbable" if math.isnan(score) else "")


def mean_verdict(verdicts: Sequence[tuple[str, Verdict]]) -> Verdict:
    """Returns the mean score of a sample's requirements, each given with its verdict. Of one question it is that question's verdict."""
    if not verdicts:
        return math.nan, Words(problem="no requirement is known")
    scores = [score for _, (score, _) in verdicts]
    mean, first = sum(scores) / len(scores), verdicts[0][1][1]
    if len(verdicts) == 1:
        return mean, first
    problem = next((words.problem for _, (_, words) in verdicts if words.problem), "")
    return mean, Words("; ".join(f"{requirement} {score:.2f}" for requirement, (score, _) in verdicts), problem=problem)


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
