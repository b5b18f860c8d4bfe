"""Wishes: what a prompt asks for, and whether a scene grants it."""

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
    """The things that a prompt names, in its order, and relations ``(name, i, j)`` between them: thing i is NAME of thing j."""

    things: tuple[Look, ...]
    relations: tuple[Relation, ...] = ()

    def as_metadata(self) -> dict[str, Any]:
        """Returns the wish in a form that JSON can hold. Prompts carry it as metadata."""
        return {"things": [asdict(look) for look in self.things], "relations": [list(r) for r in self.relations]}

    @classmethod
    def from_metadata(cls, data: Mapping[str, Any]) -> Wish:
        """The inverse of :meth:`as_metadata`.

        Raises:
            UsageError: a look or a relation does not exist, or a relation is between things that are not there.
        """
        try:
            things = tuple(Look(**look) for look in data["things"])
            relations = tuple((name, i, j) for name, i, j in data.get("relations", ()))
            looks_exist = all(
                look.shape in (None, *SHAPES) and look.color in (None, *COLORS) and look.texture in (None, *TEXTURES) for look in things
            )
            relations_valid = all(name in RELATIONS and i != j and {i, j} <= set(range(len(things))) for name, i, j in relations)
        except (TypeError, ValueError):
            looks_exist = relations_valid = False
        if not (looks_exist and relations_valid):
            shown = json.dumps({key: data[key] for key in ("things", "relations") if key in data}, default=str)
            raise UsageError(f"a prompt's metadata is no wish of this world: {shown[:200]}", hint=f"write it as {json.dumps(EXAMPLE)}")
        return cls(things, relations)


def kept_relations(wish: Wish, assignment: Sequence[int | None], boxes: Sequence[Sequence[float]]) -> float:
    """Returns the share of the wish's relations that hold, in [0,1]. It is 1 for a wish without relations.

    Args:
        wish: the wish.
        assignment: for each thing of the wish the index of its box, or None.
        boxes: (x1, y1, x2, y2) in any one unit.
    """
    if not wish.relations:
        return 1.0
    held = 0
    for name, i, j in wish.relations:
        a, b = assignment[i], assignment[j]
        held += a is not None and b is not None and holds(name, boxes[a], boxes[b])
    return held / len(wish.relations)


def granted(wish: Wish, looks: Sequence[Look], boxes: Sequence[Sequence[float]]) -> bool:
    """Returns true if looks and boxes are exactly the wished things, no more and no fewer, and all relations hold."""
    if len(looks) != len(wish.things):
        return False
    return any(
        all(wished.admits(looks[k]) for wished, k in zip(wish.things, order, strict=True)) and kept_relations(wish, order, boxes) == 1
        for order in permutations(range(len(looks)))
    )


def granted_by(wish: Wish, scene: Sequence[Thing]) -> bool:
    """Returns :func:`granted` for a painted scene."""
    boxes: list[Box] = [thing.box for thing in scene]
    return granted(wish, [thing.look for thing in scene], boxes)
