"""Reads scores, boxes and lists from models' answers, in JSON or in tags, whatever text surrounds them. Nothing is guessed.

The table in docs/judges.md says what counts as what.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from gotr1_judges.absence import says_nothing_there

Box: TypeAlias = tuple[float, float, float, float]

HIGHEST: Final = 10
_BOX_KEYS: Final = frozenset({"bbox_2d", "bbox", "box", "box_2d", "boxes", "bounding_box", "bboxes"})
_REASON_KEYS: Final = frozenset({"reason", "explanation", "justification"})
_NUMBER: Final = r"-?\d+(?:\.\d+)?"
_OF: Final = rf"({_NUMBER})(?:\s*(?:/|out\s+of)\s*({_NUMBER})|\s*(%))?"  # 8, 8/10, 8 out of 10, 80 %
# JSON may be broken, most often by a quote within a quote, and still contain a readable score. A character must follow the number, or it
# is of ten or in percent: an answer that was cut could otherwise turn 10 into 1.
_LOOSE_SCORE: Final = re.compile(
    rf"(?<![a-z])[\"'“”]?score[\"'“”*]*\s*[:=][\s\"'“”*]*{_OF}"
    r"(?:(?=[\s\"'“”}\]*]|,(?!\d)|\.\s)(?!\s*/|\s+out\s+of\b)|(?<=/10)(?!\d)|(?<=%))",
    re.IGNORECASE,
)
_SCORE_TEXT: Final = re.compile(rf"\s*{_OF}\s*", re.IGNORECASE)
_BRACKET: Final = re.compile(r"[{}\[\]]")
_OBJECT: Final = re.compile(r"\{\s*[\"'“”]")  # how a JSON object begins; prose in braces does not
_TRAILING_COMMA: Final = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)  # texts are matched to pass over them
_BOX_TAG: Final = re.compile(r"<box>(.*?)(?:</box>|$)", re.DOTALL)
_PAIRS_TAG: Final = re.compile(r"<\|box_start\|>(.*?)(?:<\|box_end\|>|$)", re.DOTALL)
_CORNER_PAIRS: Final = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)\s*,\s*\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
_CORNERS: Final = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
_CORNER_KEYS: Final = ("x1", "y1", "x2", "y2")
_CLOSED_TAG: Final = re.compile(r"<box>(.*?)</box>|<\|box_start\|>(.*?)<\|box_end\|>", re.DOTALL)
_ITEM: Final = re.compile(r"(?:\(?\**(\d{1,3})[.):]\**|[-*•–])(?:\s+(.*\S))?")
_WRAPPED: Final = re.compile(r"\*\*([^*]*)\*\*|\"([^\"]*)\"")
_JSON_LIST: Final = re.compile(r"[\[{]\s*(?:[\"'“”{\[]|$)")  # how a list or an object of texts begins; a note in brackets does not


@dataclass(frozen=True)
class _Json:
    """The JSON in a text.

    ``values`` are the outermost objects and lists that can be read, each with its region and the number of broken brackets around it.
    A region is one value, or a stretch of text within broken brackets. ``at`` are the places where region and depth change, in
    order, and ``state`` has region and depth from each of them on. Depth 0 is prose; -1 is within a value.
    """

    values: list[tuple[int, int, Any]]
    at: list[int]
    state: list[tuple[int, int]]

    def state_at(self, position: int) -> tuple[int, int]:
        """Returns region and depth of a place in the text."""
        return self.state[bisect(self.at, position) - 1]


def _scan(text: str) -> _Json:
    """Finds the JSON in a text. A comma after the last item is allowed. Prose, code fences and broken JSON are passed over."""
    decoder, at, region, depth = json.JSONDecoder(), 0, 0, 0
    repaired = _TRAILING_COMMA.sub(lambda match: match[1] or " ", text)  # as long as the text
    found = _Json([], [0], [(0, 0)])
    while (bracket := _BRACKET.search(text, at)) is not None:
        start, at = bracket.start(), bracket.end()
        if bracket[0] in "}]":
            depth = max(0, depth - 1)
        else:
            region += depth == 0
            try:
                value, at = _decode(decoder, text, repaired, start)
            except ValueError:
                depth += 1
            except RecursionError:  # too many nested brackets; every inner one would be tried next
                break
            else:
                found.values.append((region, depth, value))
                found.at.append(start)
                found.state.append((region, -1))
        found.at.append(at)
        found.state.append((region, depth))
    return found


def _decode(decoder: json.JSONDecoder, text: str, repaired: str, start: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, start)
    except ValueError:
        return decoder.raw_decode(repaired, start)


def json_values(text: str) -> list[Any]:
    """Returns the outermost JSON objects and lists of a text, in order. Prose, code fences and broken JSON are skipped."""
    return [value for _, _, value in _scan(text).values]


def read_score(text: str) -> float:
    """Returns an answer's score, which is from 0 to 10, divided by 10: in [0,1]. NaN if there is none or it is out of range.

    Of several scores the last one counts, because thoughts come before the verdict. Of nested objects the outermost score counts.
    Prose before a JSON object does not count.
    """
    found = _scan(text)
    regions: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for region, depth, value in found.values:
        regions[region] += [(depth + inner, score) for inner, score in _scores(value)]
    prose = []
    for match in _LOOSE_SCORE.finditer(text):
        region, depth = found.state_at(match.start())
        if depth > 0:
            regions[region].append((depth, _of_ten(match)))
        elif depth == 0 and not _OBJECT.search(text, match.end()):
            prose.append(_of_ten(match))
    in_json = [scores for _, scores in sorted(regions.items()) if scores]
    if in_json:
        outermost = min(depth for depth, _ in in_json[-1])
        prose = [score for depth, score in in_json[-1] if depth == outermost]
    return prose[-1] / HIGHEST if prose and 0 <= prose[-1] <= HIGHEST else math.nan


def _scores(value: Any, depth: int = 1) -> Iterator[tuple[int, float]]:
    """Yields depth and number of each key ``score``. A value that is not a number is NaN: such a verdict has no score."""
    if isinstance(value, list):
        for item in value:
            yield from _scores(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key.strip().lower() != "score":
                yield from _scores(item, depth + 1)
            elif isinstance(item, str) and (match := _SCORE_TEXT.fullmatch(item)):
                yield depth, _of_ten(match)
            else:
                yield depth, _number(item)


def _of_ten(match: re.Match[str]) -> float:
    """Returns the score, from 0 to 10, of a match of `_OF`."""
    highest = float(match[2] or (100 if match[3] else HIGHEST))
    return float(match[1]) * HIGHEST / highest if highest > 0 else math.nan


def _number(item: Any) -> float:
    """Returns a JSON number as a float, NaN for anything else."""
    try:
        return float(item) if isinstance(item, int | float) and not isinstance(item, bool) else math.nan
    except OverflowError:
        return math.nan


def read_reason(text: str) -> str:
    """Returns the reason in an answer's last JSON object that has one, in one line; an empty text if there is none."""
    for value in reversed(json_values(text)):
        for key, item in value.items() if isinstance(value, dict) else ():
            if key.strip().lower() in _REASON_KEYS and isinstance(item, str):
                return " ".join(item.split())
    return ""


def read_list(text: str) -> list[str] | None:
    """Returns the sentences of a list of texts in an answer, without blanks and repeats. None if there is no such list.

    The list is JSON, or has numbers or dashes before its lines. Of several JSON values the last one with a list counts.
    """
    for value in reversed(json_values(text)):
        lists = [value] if isinstance(value, list) else [item for item in value.values() if isinstance(item, list)]
        for texts in lists:
            if texts and all(isinstance(item, str) for item in texts):
                return _without_repeats(texts)
    return None if _JSON_LIST.search(text) else _without_repeats(_listed_lines(text))


def _without_repeats(texts: list[str]) -> list[str] | None:
    return list(dict.fromkeys(" ".join(item.split()) for item in texts if item.strip())) or None


def _listed_lines(text: str) -> list[str]:
    """Returns the items after 1., 2., 3. … or after dashes, without Markdown's stars and quotes around them.

    An indented line continues its item. None of them if an item is empty or the numbers have gaps, which no list has.
    """
    numbers: list[int] = []
    items: list[str] = []
    for line in text.split("\n"):
        if match := _ITEM.fullmatch(line.strip()):
            numbers += [int(match[1])] if match[1] else []
            items.append(match[2] or "")
        elif items and line[:1].isspace() and line.strip():
            items[-1] += f" {line.strip()}"
    complete = all(items) and numbers in ([], list(range(1, len(items) + 1)))
    return [wrapped[1] or wrapped[2] or "" if (wrapped := _WRAPPED.fullmatch(item)) else item for item in items if complete]


def read_boxes(text: str) -> list[Box] | None:
    """Returns the boxes (x1, y1, x2, y2) of an answer, in the unit in which they are written.

    Boxes in tags, which InternVL and Qwen2-VL write, take precedence over JSON, and JSON with a box key over other numbers. Numbers may be
    texts. Corners in another order are sorted. A box without area or without exactly four numbers is dropped.

    Returns:
        The boxes; an empty list if the answer says that nothing is there, in words or by boxes of zeros; None if the answer contains no
        valid box and does not say so.
    """
    candidates = _candidates(text)
    if not candidates:
        tagged = [(tag[1] or tag[2] or "").strip() for tag in _CLOSED_TAG.finditer(text)]
        nothing = says_nothing_there(text) or any(not item or says_nothing_there(item) for item in tagged)
        return [] if nothing or any(_says_nothing_there(value) for value in json_values(text)) else None
    valid = [box for corners in candidates if (box := _box(corners)) is not None]
    zeros = all(len(corners) == 4 and not any(map(_corner, corners)) for corners in candidates)
    return valid or ([] if zeros else None)


def _candidates(text: str) -> list[list[Any]]:
    """Returns the lists that may be boxes, from where they count most."""
    tagged = [corners for tag in _BOX_TAG.finditer(text) for value in json_values(tag[1]) for corners in _boxes(value)]
    tagged = tagged or [corners for tag in _CLOSED_TAG.finditer(text) for corners in _four_numbers(tag[1] or tag[2] or "")]
    tagged = tagged or [corners for tag in _PAIRS_TAG.finditer(text) for corners in _pairs(tag[1])]
    if tagged:
        return tagged
    values = json_values(text)
    keyed = [corners for value in values for keyed_value in _under_box_keys(value) for corners in _boxes(keyed_value)]
    return keyed or [corners for value in values for corners in _boxes(value)] or _pairs(text)


def _pairs(text: str) -> list[list[Any]]:
    """Returns the boxes that are written as (x1, y1), (x2, y2) or as (x1, y1, x2, y2)."""
    matches = [*_CORNER_PAIRS.finditer(text)] or [*_CORNERS.finditer(text)]
    return [[float(number) for number in match.groups()] for match in matches]


def _four_numbers(text: str) -> list[list[Any]]:
    """Returns the one box of a text of four numbers, with any brackets and commas between them; nothing for another text."""
    numbers = re.findall(_NUMBER, text)
    return [numbers] if len(numbers) == 4 and not re.sub(rf"{_NUMBER}|[\s,()\[\]]", "", text) else []


def _says_nothing_there(value: Any) -> bool:
    """Returns true if JSON says that nothing is there: it is empty, or what it has under a box key is, or a text in its place says so.

    Without a box key all that it has must be empty or say so, as in ``{"objects": []}``.
    """
    if value is None:
        return True
    if isinstance(value, str):
        return says_nothing_there(value)
    if isinstance(value, list):
        return all(map(_says_nothing_there, value))
    if isinstance(value, dict):
        keyed = [not item or _says_nothing_there(item) for key, item in value.items() if _is_box_key(key)]
        return any(keyed) if keyed else all(map(_says_nothing_there, value.values()))
    return False


def _is_box_key(key: str) -> bool:
    return key.strip().lower() in _BOX_KEYS


def _under_box_keys(value: Any) -> Iterator[Any]:
    """Yields the outermost objects with a box key, each with only its box keys."""
    if isinstance(value, dict):
        own = {key: item for key, item in value.items() if _is_box_key(key)}
        if own:
            yield own
        else:
            for item in value.values():
                yield from _under_box_keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _under_box_keys(item)


def _boxes(value: Any) -> Iterator[list[Any]]:
    """Yields lists that may be boxes: four items, two pairs, the keys x1, y1, x2, y2; under a box key also flat lists and texts."""
    if isinstance(value, dict):
        if all(key in value for key in _CORNER_KEYS):
            yield [value[key] for key in _CORNER_KEYS]
            return
        for key, item in value.items():
            if _is_box_key(key) and isinstance(item, str):
                yield from _four_numbers(item)
            elif _is_box_key(key) and isinstance(item, list) and item and not isinstance(item[0], list | dict | str):
                yield item
            else:
                yield from _boxes(item)
    elif isinstance(value, list):
        if len(value) == 4 and not any(isinstance(item, list | dict) for item in value):
            yield value
        elif len(value) == 2 and all(isinstance(item, list) and len(item) == 2 for item in value):
            yield [*value[0], *value[1]]
        else:
            for item in value:
                yield from _boxes(item)


def _box(corners: list[Any]) -> Box | None:
    """Returns a box with sorted corners, or None if these are not four finite numbers or the box has no area."""
    numbers = [_corner(corner) for corner in corners]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        return None
    (x1, x2), (y1, y2) = sorted(numbers[::2]), sorted(numbers[1::2])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _corner(item: Any) -> float:
    """Returns a corner, which is a number or a text of one; NaN for anything else."""
    return float(item) if isinstance(item, str) and re.fullmatch(_NUMBER, item.strip()) else _number(item)
