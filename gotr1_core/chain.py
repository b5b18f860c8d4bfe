"""Generation chains: prose with named regions. Parses them, formats them and strips their boxes.

A chain is prose in which `<|obj_start|>phrase<|obj_end|>` marks an object, which `<|box_start|>(x1,y1),(x2,y2)<|box_end|>` may follow
(after optional whitespace): integers 0-999, x of the width and y of the height.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

OBJ_START: Final = "<|obj_start|>"
OBJ_END: Final = "<|obj_end|>"
BOX_START: Final = "<|box_start|>"
BOX_END: Final = "<|box_end|>"
SCALE: Final = 999
"""The largest coordinate: the right or the bottom edge."""

MAX_PROBLEMS: Final = 20
Box: TypeAlias = tuple[int, int, int, int]

_END: Final = {OBJ_START: OBJ_END, BOX_START: BOX_END}
_TAG: Final = re.compile(r"(<\|(?:obj|box)_(?:start|end)\|>)")
_NUMBER: Final = r"(0|[1-9][0-9]*)"
_BOX: Final = re.compile(rf"\({_NUMBER},{_NUMBER}\),\({_NUMBER},{_NUMBER}\)")
# What a malformed box leaves in prose: the start tag and whatever looks like coordinates after it.
_LOOSE_BOX: Final = re.compile(r"<\|box_start\|>[0-9(),.\s-]*")


@dataclass(frozen=True)
class Mention:
    """A phrase marked as an object, without a box. `phrase` is as written, without tags and not blank."""

    phrase: str

    @property
    def text(self) -> str:
        """The written form, with tags."""
        return f"{OBJ_START}{self.phrase}{OBJ_END}"


@dataclass(frozen=True)
class Region:
    """One object of a chain and where it belongs.

    Attributes:
        phrase: as written, without tags and not blank.
        box: (x1, y1, x2, y2), integers 0-999 with x1 < x2 and y1 < y2, in thousandths of width and height.
        gap: the whitespace between phrase and box, as written.

    Nothing is checked here: `Chain.of` reports what is wrong with a part as a problem of the chain.
    """

    phrase: str
    box: Box
    gap: str = ""

    @property
    def text(self) -> str:
        """The written form, with tags."""
        x1, y1, x2, y2 = self.box
        return f"{OBJ_START}{self.phrase}{OBJ_END}{self.gap}{BOX_START}({x1},{y1}),({x2},{y2}){BOX_END}"


Part: TypeAlias = str | Mention | Region


@dataclass(frozen=True)
class Chain:
    """A chain as read by `parse` or built by `Chain.of`; it always equals `parse(chain.raw)`.

    Attributes:
        raw: the text, verbatim.
        parts: prose, mentions and regions in order. What could not be read stays prose, tags included.
        problems: what is malformed, as short sentences, without repeats and at most `MAX_PROBLEMS`.
    """

    raw: str
    parts: tuple[Part, ...]
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Chain:
        """A chain of these parts. Neighbouring prose is joined; an impossible part shows up in `problems`."""
        return parse("".join(part if isinstance(part, str) else part.text for part in parts))

    @property
    def well_formed(self) -> bool:
        """True if nothing is malformed. Prose without any tag is well-formed."""
        return not self.problems

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions in order; of a malformed chain those that could be read."""
        return tuple(part for part in self.parts if isinstance(part, Region))

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases of all mentions and regions in order, as written."""
        return tuple(part.phrase for part in self.parts if not isinstance(part, str))

    def without_boxes(self) -> str:
        """The chain as plain prose: no tags, no boxes, the phrases kept, runs of whitespace made one space."""
        words: list[str] = []
        after_box = False
        for part in self.parts:
            plain = _TAG.sub("", _LOOSE_BOX.sub(" ", part)) if isinstance(part, str) else part.phrase
            if after_box and plain[:1].isalnum():
                words.append(" ")  # the box was all that stood between two words
            words.append(plain)
            after_box = isinstance(part, Region)
        return " ".join("".join(words).split())


def parse(text: str) -> Chain:
    """Reads a chain. Never raises and takes linear time; what is malformed is listed in `problems`."""
    pieces = _TAG.split(text)  # prose, tag, prose, tag, ..., prose
    problems = _Problems()
    parts: list[Part] = []
    prose = [pieces[0]]
    at = 1  # always at a tag
    while at < len(pieces):
        part, end = _read(pieces, at, problems)
        if part is None:
            prose += pieces[at:end]
        else:
            _flush(prose, parts)
            parts.append(part)
        prose.append(pieces[end])
        at = end + 1
    _flush(prose, parts)
    return Chain(text, tuple(parts), tuple(problems.seen))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union, in [0, 1], of two boxes (x1, y1, x2, y2); 0 for a reversed or empty box."""
    intersection = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - intersection
    return intersection / union if intersection > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _flush(prose: list[str], parts: list[Part]) -> None:
    """Moves gathered prose into the parts as one string."""
    if text := "".join(prose):
        parts.append(text)
    prose.clear()


class _Problems:
    """Problems in order of appearance, each once, a bounded number of them."""

    def __init__(self) -> None:
        self.seen: dict[str, None] = {}

    def add(self, sentence: str) -> None:
        if len(self.seen) < MAX_PROBLEMS:
            self.seen.setdefault(sentence)


def _read(pieces: list[str], at: int, problems: _Problems) -> tuple[Mention | Region | None, int]:
    """Reads what starts at the tag `pieces[at]`; returns it (None: it stays prose) and the index of the prose after it."""
    tag = pieces[at]
    if tag not in _END:
        problems.add(f"{tag} without {OBJ_START if tag == OBJ_END else BOX_START}.")
        return None, at + 1
    following = _tag_at(pieces, at + 2)
    if following != _END[tag]:
        problems.add(f"nested tag: {following} inside {tag}." if following in _END else f"{tag} without {_END[tag]}.")
        return None, at + 1
    if tag == BOX_START:
        problems.add(f"box without a phrase directly before it: {_short(pieces[at + 1])}.")
        _box(pieces[at + 1], problems)
        return None, at + 3
    return _read_object(pieces, at, problems)


def _read_object(pieces: list[str], at: int, problems: _Problems) -> tuple[Mention | Region | None, int]:
    """The mention or region whose start tag is `pieces[at]`; its end tag is known to follow."""
    phrase, gap = pieces[at + 1], pieces[at + 3]
    if not phrase.strip():
        problems.add("empty phrase.")
        return None, at + 3
    if gap.strip() or _tag_at(pieces, at + 4) != BOX_START or _tag_at(pieces, at + 6) != BOX_END:
        return Mention(phrase), at + 3
    box = _box(pieces[at + 5], problems)
    if box is None:
        # The bad box becomes prose here, or it would be reported again as one without a phrase.
        pieces[at + 7] = "".join(pieces[at + 3 : at + 8])
        return Mention(phrase), at + 7
    return Region(phrase, box, gap), at + 7


def _box(text: str, problems: _Problems) -> Box | None:
    """The box written in `text`, or None and a problem."""
    match = _BOX.fullmatch(text)
    if match is None:
        problems.add(f"box not written as (x1,y1),(x2,y2): {_short(text)}.")
        return None
    digits = match.groups()
    if any(len(number) > len(str(SCALE)) for number in digits):  # int() refuses thousands of digits
        problems.add(f"coordinate out of range 0-{SCALE}: {_short(text)}.")
        return None
    x1, y1, x2, y2 = (int(number) for number in digits)
    if x1 >= x2 or y1 >= y2:
        problems.add(f"reversed or empty box: {_short(text)}.")
        return None
    return x1, y1, x2, y2


def _tag_at(pieces: list[str], at: int) -> str | None:
    return pieces[at] if at < len(pieces) else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
