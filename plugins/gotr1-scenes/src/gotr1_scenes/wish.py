"""What a prompt asks for, and whether a scene grants it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

from gotr1_core.errors import UsageError
from gotr1_scenes.world import COLORS, RELATIONS, SHAPES, TEXTURES, Box, Look, Thing, holds

Relation = tuple[str, int, int]
EXAMPLE = {"things": [{"shape": "circle", "color": "red"}, {"shape": "square"}], "relations": [["left", 0, 1]]}


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
        """The inverse of :meth:`as_metadata`.

        Raises:
            UsageError: that is no wish: a look or a relation that does not exist, or one of things that are not named.
        """
        try:
            things = tuple(Look(**look) for look in data["things"])
            relations = tuple((name, i, j) for name, i, j in data.get("relations", ()))
            known = all(
                look.shape in (None, *SHAPES) and look.color in (None, *COLORS) and look.texture in (None, *TEXTURES) for look in things
            )
            related = all(name in RELATIONS and i != j and {i, j} <= set(range(len(things))) for name, i, j in relations)
        except (TypeError, ValueError):
            known = related = False
        if not (known and related):
            found = json.dumps({key: data[key] for key in ("things", "relations") if key in data}, default=str)
            raise UsageError(f"a prompt's metadata is no wish of this world: {found[:200]}", hint=f"such as {json.dumps(EXAMPLE)}")
        return cls(things, relations)


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
