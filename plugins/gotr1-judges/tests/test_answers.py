"""Reading what models write: scores, boxes and lists, with any text around them. Nothing is guessed."""

from __future__ import annotations

import math

import pytest

from gotr1_judges.absence import says_nothing_there
from gotr1_judges.answers import read_boxes, read_list, read_score

nan = math.nan


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"description": "a dog", "reason": "as asked", "score": 7}', 0.7),
        ('{"score": 7.5}', 0.75),
        ('{"score": 0}', 0.0),
        ('{"score": 10}', 1.0),
        ('{"Score ": "8/10"}', 0.8),  # a text that is a number
        ('{"score": " 8 "}', 0.8),
        # Prose and code fences around it.
        ('Here is my verdict:\n```json\n{"reason": "x", "score": 3}\n```\nI hope that helps [1].', 0.3),
        ('Set {a, b} says {"score": 4}', 0.4),
        # Several objects: thoughts come before the verdict.
        ('{"description": "a dog"}\n{"reason": "small"}\n{"score": 2}', 0.2),
        ('{"score": 2} On reflection: {"score": 6}', 0.6),
        ('[{"score": 1}, {"score": 9}]', 0.9),
        ('{"answer": {"score": 5}, "notes": []}', 0.5),
        # Of another highest score, and in percent.
        ('{"score": "7.5/10.0"}', 0.75),
        ('{"score": "7 out of 10"}', 0.7),
        ('{"score": 70%}', 0.7),
        ("Score: 80/100, ", 0.8),
        ("Final score: 7/10.", 0.7),
        ("**Score: 7/10**", 0.7),
        ("Score: **7**", 0.7),
        ('{"score": 8/5}', nan),
        ('{"score": "3/0"}', nan),
        ("Score: 8/5. ", nan),
        ('{"score": 8,5}', nan),
        ("Score: 7/1", nan),  # 7/10 that was cut
        # Out of range is no score, and neither is what is no number.
        ('{"score": 11}', nan),
        ('{"score": -1}', nan),
        ('{"score": 1e400}', nan),
        ('{"score": NaN}', nan),
        ('{"score": true}', nan),
        ('{"score": null}', nan),
        ('{"score": "good"}', nan),
        ('{"score": [7]}', nan),
        ('{"score": 7} no: {"score": 70}', nan),  # the last word is none, and what came before it was taken back
        # JSON that is none, for a quote in a quote, still says its score.
        ('{"description": "a sign that says "stop"", "score": 6}', 0.6),
        ("{'description': 'a dog', 'score': 6}", 0.6),
        ("score: 9/10, since all is there", 0.9),
        ("The score: 8. It fits.", 0.8),
        # What was cut is not completed: 1 may have been 10.
        ('{"description": "a dog", "score": 1', nan),
        ('{"description": "a dog that', nan),
        ("My score: 7", nan),
        ('Score: 7, I think. {"description": "a dog", "score": 1', nan),
        # A broken outer object: its own score counts, not that of an object in it.
        ('{"score": 8, "reason": "says "stop"", "parts": [{"score": 2}]}', 0.8),
        ("{'score': 8, 'parts': [{'score': 2}]} and that is all", 0.8),
        ('{"parts": {"a": {"score": 1}}, "verdict": {"score": 4}}', 0.4),
        ("underscore: 7, ", nan),
        ("I cannot tell.", nan),
        ("", nan),
        ("{" * 5000, nan),
        ("[" * 100_000, nan),
    ],
)
def test_scores(text: str, score: float) -> None:
    assert read_score(text) == pytest.approx(score, nan_ok=True)


one, other = (10.0, 20.0, 30.0, 40.0), (5.0, 5.0, 9.0, 9.0)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "a dog"}]', [one]),
        ('```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "x"},\n\t{"bbox_2d": [5, 5, 9, 9], "label": "x"}\n]\n```', [one, other]),
        ('{"objects": [{"box": [10.0, 20, 30, 40]}, {"box": [5, 5, 9, 9]}]}', [one, other]),
        ('{"boxes": [[10, 20, 30, 40], [5, 5, 9, 9]]}', [one, other]),
        ("[10, 20, 30, 40]", [one]),
        ("It is at [10, 20, 30, 40].", [one]),
        # Tags: InternVL's and Qwen2-VL's.
        ("<ref>a dog</ref><box>[[10, 20, 30, 40]]</box>", [one]),
        ("<ref>a dog</ref><box>[[10, 20, 30, 40], [5, 5, 9, 9]]</box>", [one, other]),
        ("<box>[10, 20, 30, 40]</box> and <box>[5, 5, 9, 9]</box>", [one, other]),
        ("<ref>a dog</ref><box>[[10, 20, 30, 40]]", [one]),  # cut after it was said
        ("<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>", [one]),
        ("(10, 20), (30, 40)", [one]),
        # Corners in another order are put right.
        ("[30, 40, 10, 20]", [one]),
        # Other ways to write four corners.
        ("<box>(10,20),(30,40)</box>", [one]),
        ("<box>10, 20, 30, 40</box>", [one]),
        ('[{"bbox_2d": ["10", "20.0", " 30 ", "40"]}, {"box": "[5, 5, 9, 9]"}]', [one, other]),
        ("[[10, 20], [30, 40]]", [one]),
        ('[{"x1": 10, "y1": 20, "x2": 30, "y2": 40, "label": "x"}]', [one]),
        ("10, 20, 30, 40", None),  # the last number may have been cut
        ("(10, 20, 30, 4", None),
        ('{"bbox_2d": "10, 20, 30"}', None),
        ('{"bbox_2d": "from 10, 20 to 30, 40"}', None),
        # What was cut keeps what was whole.
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "x"}, {"bbox_2d": [5, 5,', [one]),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "x', [one]),
        # No box among boxes is left out.
        ('[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [5, 5, 5, 9]}, {"bbox_2d": [1, 2, 3]}, {"bbox_2d": ["a", 1, 2, 3]}]', [one]),
        # Nothing is there.
        ("[]", []),
        ("```json\n[]\n```", []),
        ("{}", []),
        ('{"bbox_2d": null, "label": "a dog"}', []),
        ('[{"bbox_2d": [], "label": "a dog"}]', []),
        ("<ref>a dog</ref><box>[]</box>", []),
        ("<box>[[]]</box>", []),
        ("<box>none</box>", []),
        ("<|box_start|><|box_end|>", []),
        ("<box>", None),  # it was cut
        ('{"detections": [], "note": null}', []),
        ('{"a dog": "none"}', []),
        ('{"label": "a dog", "objects": []}', None),
        ("None", []),
        ("none.", []),
        ("[0, 0, 0, 0]", []),
        ('[{"bbox_2d": [0, 0, 0, 0]}, {"bbox_2d": [0, 0, 0]}]', None),
        ('[{"bbox_2d": [0, 0, 0, 0]}, {"bbox_2d": [10, 20, 30, 40]}]', [one]),
        # Nothing is said.
        ("I cannot see it well.", None),
        ("", None),
        ("[true, false, true, false]", None),
        ('{"bbox_2d": "left"}', None),
        ('{"label": "a dog"}', None),
        ('["a", "b"]', None),
        ("[1, 2]", None),
        ("[1e400, 2, 3, 4]", None),
        ("[" * 100_000, None),
    ],
)
def test_boxes(text: str, boxes: list[tuple[float, ...]] | None) -> None:
    assert read_boxes(text) == boxes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('["There is a dog.", "It is  brown."]', ["There is a dog.", "It is brown."]),
        ('```json\n{"requirements": ["a", "b", "a", " "]}\n```', ["a", "b"]),
        ('[1, 2] and ["a"]', ["a"]),
        ("1. There is a dog.\n3. It is brown.", None),  # the second one was left out
        ("1: There is a dog.\n2: It is brown.", ["There is a dog.", "It is brown."]),
        ('1. A sign says "stop"\n2. **It is red.**\n3. "It is [very] large."', ['A sign says "stop"', "It is red.", "It is [very] large."]),
        ("1. There is a dog\n   that is brown.\n2. It sits.", ["There is a dog that is brown.", "It sits."]),
        ("1. There is a dog.\n2.", None),  # cut
        ('1. There is a dog.\n["It is', None),  # the list was cut
        ("[]", None),
        ('[" "]', None),
        ('["a", ', None),
        ('[{"a": 1}]', None),
    ],
)
def test_lists(text: str, found: list[str] | None) -> None:
    assert read_list(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "There are none.",
        "there is none",
        "There’s no dog.",
        "There are no red balls. The picture shows a cat.",
        "There isn't a dog here.",
        "No dog is visible.",
        "No such object is present in the image",
        "None found.",
        "No red ball.",
        "The picture shows no dog.",
        "The image does not contain a dog.",
        "Sorry, the dog is not in the image.",
        "A dog is not present in this image.",
        "It is not there.",
        "It cannot be found.",
        "The dog does not appear in the picture.",
        "I don't see any dog.",
        "I cannot see a dog in the image.",
        "I could not find the dog.",
        "Here is my answer: there is no dog.",
        "Answer: None",
        "```\nnone\n```",
        "Nothing of that kind is in the picture.",
        "The dog is absent.",
        "The dog is missing from the picture.",
        "Object not found.",
        "Not in the picture.",
        "Unfortunately, there is no dog in this image.",
        "In this image, there is no dog.",
        "Upon closer inspection, no dog can be seen.",
        "I'm sorry, but there is no dog in the image.",
        "Based on the image there is no dog.",
        "**There is no dog.**",
        "There is no picture frame in the image.",
        "There is no object in the image that matches this phrase.",
    ],
)
def test_a_sentence_says_that_nothing_is_there(text: str) -> None:
    assert says_nothing_there(text)
    assert read_boxes(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "I can't see the picture.",
        "I'm sorry, I can't assist with that.",
        "I cannot detect objects in images.",
        "I am not sure. There is no dog, I think.",
        "There is no doubt that the dog is at the left.",
        "There is no other dog besides the one at the top.",
        "There is nothing more to say.",
        "There is no box.",
        "The dog is not clearly visible.",
        "I do not see it clearly.",
        "It is not at the left, it is at the top.",
        "If there is no dog, I return nothing.",
        "The dog is there.",
        "Not only a dog.",
        "There is no image.",
        "No image was provided.",
        "The image is not visible.",
        "The picture is missing.",
        "The image could not be found.",
        "No phrase was given.",
        "There is nothing I can do.",
        "I'm sorry, but I can't help with that.",
        "At the top there is no dog.",
        "The dog is missing a leg.",
        "No, there is a dog.",
        "No idea.",
        "No answer.",
    ],
)
def test_a_sentence_that_is_not_sure_says_nothing(text: str) -> None:
    assert not says_nothing_there(text)
    assert read_boxes(text) is None
