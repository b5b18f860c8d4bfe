"""What a prompt asks for, and whether a scene grants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

from gotr1_scenes.world import Box, Look, Thing, holds

Relation = tuple[str, int, int]


@dataclass(frozen=True)
class Wish:
    """The things a prompt names, in the order it names them, and relations ``(name, i, j)`` between them: i is NAME of j."""

    things: tuple[Look, ...]
    relations: tuple[Relation, ...] = ()

    def as_metadata(self) -> dict[str, Any]:
        """A JSON-ready form, which a prompt carries."""
        return {"things": [asdict(look) for look in self.things], "relations": [list(r) for r in self.relations]}

    @classmethod
    def from_metadata(cls, data: Mapping[str, Any]) -> Wish:
        """The inverse of :meth:`as_metadata`."""
        return cls(tuple(Look(**look) for look in data["things"]), tuple((r, i, j) for r, i, j in data["relations"]))


def kept_relations(wish: Wish, given: Sequence[int | None], boxes: Sequence[Sequence[float]]) -> float:
    """The share of the wish's relations that hold under an assignment; 1 where it has none."""
    if not wish.relations:
        return 1.0
    held = 0
    for name, i, j in wish.relations:
        a, b = given[i], given[j]
        held += a is not None and b is not None and holds(name, boxes[a], boxes[b])
    return held / len(wish.relations)


def granted(wish: Wish, looks: Sequence[Look], boxes: Sequence[Sequence[float]]) -> bool:
    """Whether everything wished for is there and true, and nothing more is there."""
    if len(looks) != len(wish.things):
        return False
    return any(
        all(want.admits(looks[k]) for want, k in zip(wish.things, given, strict=True)) and kept_relations(wish, given, boxes) == 1
        for given in permutations(range(len(looks)))
    )


def granted_by(wish: Wish, scene: Sequence[Thing]) -> bool:
    """:func:`granted` for a painted scene."""
    boxes: list[Box] = [thing.box for thing in scene]
    return granted(wish, [thing.look for thing in scene], boxes)
