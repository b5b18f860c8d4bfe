"""Reads scores, boxes and lists from models' answers, in JSON or in tags, whatever text surrounds them. Nothing is guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]

HIGHEST: Final = 10
NONE: Final = frozenset({"none", "null", "no", "there is none", "not found"})
"""Complete answers which say that nothing is there."""
_BOX_KEYS: Final = frozenset({"bbox_2d", "bbox", "box", "box_2d", "boxes", "bounding_box", "bboxes"})
_NUMBER: Final = r"-?\d+(?:\.\d+)?"
# JSON may be broken, most often by a quote within a quote, and still contain a readable score. A character must follow the number: an
# answer that was cut could otherwise turn 10 into 1.
_LOOSE_SCORE: Final = re.compile(
    rf"(?<![a-z])[\"'“”]?score[\"'“”]?\s*[:=]\s*[\"'“”]?({_NUMBER})(?:\s*/\s*10)?(?=[\s\"'“”,}}\]/]|\.\s)", re.IGNORECASE
)
_SCORE_TEXT: Final = re.compile(rf"\s*({_NUMBER})\s*(?:/\s*10\s*)?")
_OPEN: Final = re.compile(r"[{\[]")
_BOX_TAG: Final = re.compile(r"<box>(.*?)(?:</box>|$)", re.DOTALL)
_CORNER_PAIRS: Final = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)\s*,\s*\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")


def json_values(text: str) -> Iterator[Any]:
    """Yields the outermost JSON objects and lists of a text, in order. Prose, code fences and broken JSON are skipped."""
    decoder, at = json.JSONDecoder(), 0
    while (bracket := _OPEN.search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, bracket.start())
        except ValueError:
            at = bracket.start() + 1
        except RecursionError:  # too many nested brackets; every inner one would be tried next
            return
        else:
            yield value


def read_score(text: str) -> float:
    """Returns an answer's score, which is from 0 to 10, divided by 10: in [0,1]. NaN if there is none or it is out of range.

    Of several scores the last one counts, because thoughts come before the verdict.
    """
    scores = [score for value in json_values(text) for score in _scores(value)]
    if not scores:
        scores = [float(match[1]) for match in _LOOSE_SCORE.finditer(text)]
    return scores[-1] / HIGHEST if scores and 0 <= scores[-1] <= HIGHEST else math.nan


def _scores(value: Any) -> Iterator[float]:
    """Yields the numbers under the key ``score``, at any depth. A value that is not a number is NaN: such a verdict has no score."""
    if isinstance(value, list):
        for item in value:
            yield from _scores(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key.strip().lower() != "score":
                yield from _scores(item)
            elif isinstance(item, str) and (match := _SCORE_TEXT.fullmatch(item)):
                yield float(match[1])
            else:
                yield _number(item)


def _number(item: Any) -> float:
    """Returns a JSON number as a float, NaN for anything else."""
    try:
        return float(item) if isinstance(item, int | float) and not isinstance(item, bool) else math.nan
    except OverflowError:
        return math.nan


def read_list(text: str) -> list[str] | None:
    """Returns the sentences of the first list of texts in an answer, without blanks and repeats. None if there is no such list."""
    for value in json_values(text):
        lists = [value] if isinstance(value, list) else [item for item in value.values() if isinstance(item, list)]
        for texts in lists:
            if texts and all(isinstance(item, str) for item in texts):
                return list(dict.fromkeys(" ".join(item.split()) for item in texts if item.strip())) or None
    return None


def read_boxes(text: str) -> list[Box] | None:
    """Returns the boxes (x1, y1, x2, y2) of an answer, in the unit in which they are written.

    Boxes in tags, which InternVL and Qwen2-VL write, take precedence over JSON. Corners in another order are sorted. A box without area
    or without exactly four numbers is dropped.

    Returns:
        The boxes; an empty list if the answer says that nothing is there; None if the answer contains no valid box and does not say so.
    """
    tagged = [corners for tag in _BOX_TAG.finditer(text) for corners in _boxes_in_tag(tag[1])]
    pairs = [[float(number) for number in match.groups()] for match in _CORNER_PAIRS.finditer(text)]
    candidates = tagged or pairs or [box for value in json_values(text) for box in _boxes(value)]
    if not candidates:
        answer = " ".join(text.split()).strip(" .`").lower()
        nothing = answer in NONE or any(_says_nothing_there(value) for value in json_values(text))
        return [] if nothing else None
    valid = [box for corners in candidates if (box := _box(corners)) is not None]
    return valid or None


def _says_nothing_there(value: Any) -> bool:
    """Returns true if JSON says that nothing is there: it is empty, or the value under a box key is."""
    if isinstance(value, list):
        return all(_says_nothing_there(item) for item in value)
    if isinstance(value, dict):
        return not value or any(key.strip().lower() in _BOX_KEYS and not item for key, item in value.items())
    return False


def _boxes_in_tag(text: str) -> Iterator[list[Any]]:
    for value in json_values(text):
        yield from _boxes(value)


def _boxes(value: Any) -> Iterator[list[Any]]:
    """Yields lists that may be boxes: those of four items, and flat ones under a box key."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key.strip().lower() in _BOX_KEYS and isinstance(item, list) and item and not isinstance(item[0], list | dict):
                yield item
            else:
                yield from _boxes(item)
    elif isinstance(value, list):
        if len(value) == 4 and not any(isinstance(item, list | dict) for item in value):
            yield value
        else:
            for item in value:
                yield from _boxes(item)


def _box(corners: list[Any]) -> Box | None:
    """Returns a box with sorted corners, or None if these are not four finite numbers or the box has no area."""
    numbers = [_number(corner) for corner in corners]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        return None
    (x1, x2), (y1, y2) = sorted(numbers[::2]), sorted(numbers[1::2])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
