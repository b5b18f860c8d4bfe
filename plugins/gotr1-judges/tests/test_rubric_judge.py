"""What the judge asks, and how it scores the answers. The answerer is a stand-in whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from PIL import Image

from gotr1_core.chain import Chain, Region, parse
from gotr1_core.pictures.draw_chain import draw_chain
from gotr1_core.samples import Prompt, Sample, Words
from gotr1_judges.asking import NoAnswer, Question
from gotr1_judges.rubric import RubricJudge, expected_score
from gotr1_judges.rubrics import read_rubrics

nan = math.nan
RED, BLUE = Region("red circle", (0, 0, 499, 999)), Region("blue square", (500, 0, 999, 999))
WHITE = Image.new("RGB", (96, 48), "white")


class Told:
    """Answers what a function of the question gives, and records the questions."""

    def __init__(self, answer: Callable[[Question], str | NoAnswer | None] = lambda q: None, weigh: Sequence[float] | None = None) -> None:
        self.answers, self.masses, self.asked = answer, weigh, list[Question]()

    def answer(self, questions: Sequence[Question]) -> list[str | NoAnswer | None]:
        self.asked += questions
        return [self.answers(question) for question in questions]

    def word_probabilities(self, questions: Sequence[Question], words: Sequence[str]) -> list[list[float] | None]:
        self.asked += questions
        return [None if self.masses is None else [*self.masses][: len(words)] for _ in questions]

    def extent(self, image: Image.Image) -> tuple[float, float]:
        return float(image.width), float(image.height)


def judge(told: Told, scoring: str = "text", **single: str) -> RubricJudge:
    return RubricJudge(told, read_rubrics("v1", single, scoring=scoring, family="qwen-vl", key="judge"))


def sample(*parts: str | Region, prompt: str = "a red circle and a blue square", image: Image.Image | None = WHITE) -> Sample:
    return Sample(Prompt(prompt), Chain.of(parts), image)


def test_each_reward_sees_what_it_is_about() -> None:
    told = Told(lambda q: '{"score": 6}')
    one = sample("a ", RED, " and a ", BLUE)
    assert judge(told).score([one], ["sem", "spa", "pi"]) == {"sem": [0.6], "spa": [0.6], "pi": [0.6]}
    sem, spa, pi = told.asked
    assert sem.image is None
    assert "a red circle and a blue square" in sem.parts  # the plan without its boxes, as somebody's words
    assert "box_start" not in sem.text
    assert spa.image is not None
    assert spa.image.tobytes() == draw_chain(one.chain, (448, 448)).tobytes()
    assert pi.image is WHITE
    assert all(question.parts[1] == one.prompt.text for question in told.asked)


def test_the_canvas_is_large_whatever_the_picture_is() -> None:
    told = Told(lambda q: '{"score": 6}')
    small = RubricJudge(told, judge(told).rubrics, canvas=600)
    small.score([sample(RED, image=None)], ["spa"])
    judge(told).score([sample(RED, image=Image.new("RGB", (8, 8)))], ["spa"])
    assert [question.image.size for question in told.asked if question.image is not None] == [(600, 600), (448, 448)]


def test_names_that_the_canvas_does_not_show_are_in_the_question() -> None:
    """Two plans that differ in any name or place never have both one picture and one question."""

    def ask(*parts: Region, **single: str) -> list[Question]:
        told = Told(lambda q: '{"score": 6}')
        RubricJudge(told, judge(told, **single).rubrics, font="none").score([sample(*parts)], ["spa"])
        return told.asked

    def view(*parts: Region) -> tuple[str, bytes]:
        (question,) = ask(*parts)
        assert question.image is not None
        return question.text, question.image.tobytes()

    left, right = RED.box, BLUE.box
    cat, dog = Region("猫", left), Region("狗", right)
    (question,) = ask(cat, dog)
    (plain,) = ask(RED, BLUE)
    assert plain.parts[1] == "a red circle and a blue square"  # a canvas that shows every name whole asks as ever
    lead = "Names on labels in full, by the labels' numbers: 1 is \""
    assert question.parts[:5] == (lead, "猫", '", 2 is "', "狗", f'".\n\n{plain.parts[0]}')  # names are somebody's words, at odd places
    assert question.parts[5:] == plain.parts[1:]
    plans = [
        (cat, dog),
        (dog, cat),
        (Region("狗", left), Region("猫", right)),
        (Region("猫", right), Region("狗", left)),
        (cat, cat),
        (dog, dog),
    ]
    plans += [(Region('猫", 2 is "狗', left), Region("狗", right)), (cat, Region('狗", 2 is "狗', right)), (Region("\ud800", left), dog)]
    assert len({view(*one) for one in plans}) == len(plans)


def test_no_question_is_asked_if_the_score_is_known() -> None:
    """A malformed or empty plan scores 0. A picture that is missing scores NaN."""
    told = Told(lambda q: pytest.fail("it was asked"))
    malformed = replace(sample(), chain=parse("a <|obj_start|>red circle"))
    assert judge(told).score([malformed, sample()], ["sem", "spa", "ri"]) == {"sem": [0, 0], "spa": [0, 0], "ri": [0, 0]}
    assert judge(told).score([sample("a red circle")], ["spa", "ri"]) == {"spa": [0], "ri": [0]}
    unknown = judge(told).score([sample(RED, image=None)], ["ri", "pi"])
    assert math.isnan(unknown["ri"][0])
    assert math.isnan(unknown["pi"][0])
    stranger = replace(sample(), chain=parse(""), plan_known=False)  # a picture from elsewhere, whose plan nobody gave
    assert math.isnan(judge(told).score([stranger], ["ri"])["ri"][0])


def test_a_malformed_plan_does_not_change_pi() -> None:
    malformed = replace(sample(), chain=parse("a <|obj_start|>red circle"))
    assert judge(Told(lambda q: '{"score": 6}')).score([malformed], ["pi"]) == {"pi": [0.6]}


def test_what_cannot_be_read_is_nan() -> None:
    answers = iter(['{"score": 6}', "no idea", None, '{"score": 60}'])
    found = judge(Told(lambda q: next(answers))).score([sample(RED)] * 4, ["pi"])["pi"]
    assert found == pytest.approx([0.6, nan, nan, nan], nan_ok=True)


def test_expectation() -> None:
    assert expected_score([0.0] * 9 + [1.0], 0.1) == 1
    assert expected_score([1.0] + [0.0] * 9, 0.1) == 0
    assert expected_score([0, 0, 0, 0, 0.2, 0.2, 0, 0, 0, 0], 0.1) == pytest.approx(0.5)  # finer than any digit
    assert expected_score([0.3, 0.1], 0.1) == pytest.approx(0.25)  # P(yes) among yes and no
    assert math.isnan(expected_score([0.04, 0.01], 0.1))  # it would have said something else
    assert math.isnan(expected_score(None, 0.0))
    assert math.isnan(expected_score([0.0, 0.0], 0.0))
    assert math.isnan(expected_score([nan, 1.0], 0.1))


def test_expected_scores_generate_nothing() -> None:
    told = Told(lambda q: pytest.fail("it was generated"), [0.1] * 10)
    assert judge(told, "expected").score([sample(RED)], ["sem", "pi"]) == {"sem": [pytest.approx(0.5)], "pi": [pytest.approx(0.5)]}
    assert judge(Told(weigh=[0.1, 0.3]), pi="pi-yes").score([sample(RED)], ["pi"])["pi"] == [pytest.approx(0.75)]


# -- words ------------------------------------------------------------------------------------------------------------------


def test_answers_are_kept_with_their_reasons() -> None:
    said = iter(['{"reason": "it is\\n red", "score": 6}', "I can't help with that", None, NoAnswer("refused", "no"), "score: 5/10"])
    scores, words = judge(Told(lambda q: next(said))).score_with_words([sample(RED)] * 5, ["pi"])
    assert scores["pi"] == pytest.approx([0.6, nan, nan, nan, 0.5], nan_ok=True)
    assert words["pi"] == [
        Words('{"reason": "it is\\n red", "score": 6}', "it is red"),
        Words("I can't help with that", problem="unreadable"),
        Words(problem="the question cannot be asked"),
        Words("no", problem="refused"),
        Words("score: 5/10"),
    ]


def test_boxes_that_were_found_are_kept() -> None:
    told = Told(lambda q: '[{"bbox_2d": [0, 0, 48, 48]}]' if "red" in q.text else "[]" if "blue" in q.text else "hm")
    green = Region("green cross", (0, 0, 9, 9))
    scores, words = judge(told).score_with_words([sample(RED, BLUE), sample(RED, green), sample()], ["ri"])
    assert words["ri"][0] == Words(boxes={"red circle": [(0.0, 0.0, 0.5, 1.0)], "blue square": []})
    assert words["ri"][1] == Words("hm", "looking for green cross", {"red circle": [(0.0, 0.0, 0.5, 1.0)]}, "unreadable")
    assert words["ri"][2] == Words(reason="the plan says nothing of it")
    assert math.isnan(scores["ri"][1])


def test_probabilities_are_words_too() -> None:
    (words,) = judge(Told(weigh=[0.1, 0.3]), pi="pi-yes").score_with_words([sample(RED)], ["pi"])[1]["pi"]
    assert words == Words("no 0.100, yes 0.300")
    (words,) = judge(Told(weigh=[0.0, 0.01]), pi="pi-yes").score_with_words([sample(RED)], ["pi"])[1]["pi"]
    assert words.problem == "the allowed answers are too improbable"


def test_requirements_that_could_not_be_listed_are_asked_for_again() -> None:
    answers = iter([NoAnswer("the deadline has passed"), '["There is a dog."]'])
    told = Told(lambda q: next(answers), [0.0, 1.0])
    mine = judge(told, pi="pi-requirements")
    assert math.isnan(mine.score([sample(RED)], ["pi"])["pi"][0])
    assert mine.score([sample(RED)], ["pi"])["pi"] == [1.0]


# -- requirements -----------------------------------------------------------------------------------------------------------


def test_requirements_are_asked_one_by_one() -> None:
    """They are extracted once for a prompt, however many samples it has. The score is the mean of the true ones."""
    told = Told(lambda q: '["There is a dog.", "It is brown."]' if "dog" in q.parts[1] else "I cannot")
    mine = judge(told, pi="pi-requirements")
    truth = {"There is a dog.": [0.0, 1.0], "It is brown.": [1.0, 0.0]}
    told.word_probabilities = lambda questions, words: [truth[q.parts[1]] for q in questions]  # type: ignore[method-assign]
    samples = [sample(RED, prompt="a brown dog"), sample(RED, prompt="a brown dog"), sample(RED, prompt="a cat")]
    assert mine.score(samples, ["pi"])["pi"] == pytest.approx([0.5, 0.5, nan], nan_ok=True)
    mine.score(samples, ["pi"])
    assert len(told.asked) == 2  # one question a prompt, also of what cannot be had
    brought = [Sample(Prompt("x", metadata={"requirements": ["It is brown."]}), samples[0].chain, WHITE)]
    assert mine.score(brought, ["pi"])["pi"] == [0.0]
    assert len(told.asked) == 2


# -- grounding --------------------------------------------------------------------------------------------------------------


def test_every_phrase_is_asked_once() -> None:
    told = Told(lambda q: '[{"bbox_2d": [0, 0, 48, 48]}]' if "red" in q.text else "[]")
    found = judge(told).score([sample(RED, BLUE, RED)], ["ri"])["ri"]
    assert [question.parts[1] for question in told.asked] == ["red circle", "blue square"]
    assert all(question.image is WHITE for question in told.asked)
    assert found == [pytest.approx(1 / 3, abs=2e-3)]  # one found, one planned twice, one missing; 499 of 999 is not quite a half


def test_boxes_are_in_the_units_of_the_answerer() -> None:
    told = Told(lambda q: "[[0, 0, 500, 1000]]" if "red" in q.text else "[[500, 0, 1000, 1000]]")
    told.extent = lambda image: (1000.0, 1000.0)  # type: ignore[method-assign]
    assert judge(told).score([sample(RED, BLUE)], ["ri"])["ri"] == [pytest.approx(1, abs=2e-3)]


def test_an_answer_that_says_nothing_is_not_a_missing_object() -> None:
    told = Told(lambda q: "[[0, 0, 48, 48]]" if "red" in q.text else "I do not know")
    assert math.isnan(judge(told).score([sample(RED, BLUE)], ["ri"])["ri"][0])
    assert judge(told).score([sample(RED)], ["ri"])["ri"] == [pytest.approx(1, abs=2e-3)]


def test_no_samples_are_no_scores() -> None:
    told = Told(weigh=[1.0] * 10)
    assert judge(told).score([], ["sem", "ri"]) == {"sem": [], "ri": []}
