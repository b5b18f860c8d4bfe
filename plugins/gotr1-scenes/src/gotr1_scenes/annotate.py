"""Supervised data: prompt, chain, picture, with annotation noise on purpose.

Automatic annotation is worst on hard phrasings. Here the hard phrasings of every category are annotated *wrong more often
than right* (65 %): a relation reversed, colours or textures swapped, a shape mistaken, a count off by one. The picture
follows the chain. So the most likely plan of a model trained on it is wrong there, and reinforcement learning has to turn
it over: sharpening what the model does already is not enough.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from gotr1_core.chain import SCALE, Chain, Region
from gotr1_scenes.language import Phrase, noun, phrase
from gotr1_scenes.wish import Wish, granted_by, kept_relations
from gotr1_scenes.world import CANVAS, COLORS, MAX_THINGS, OPPOSITE, SHAPES, TEXTURES, Box, Look, Scene, Thing, place

WRONG_SHARE = 0.65
LEADS = ("The picture shows ", "There is ")


@dataclass(frozen=True)
class Annotated:
    """One supervised example: the prompt, the scene painted for it, the chain that describes it, and whether it is wrong."""

    phrase: Phrase
    scene: Scene
    chain: Chain
    wrong: bool


def to_thousandths(box: Box) -> tuple[int, int, int, int]:
    """Pixels of the canvas to the chain's 0-999."""
    x1, y1, x2, y2 = (round(v * SCALE / CANVAS) for v in box)
    return x1, y1, x2, y2


def describe(scene: Scene, lead: str) -> Chain:
    """The chain of a scene: prose with a phrase and a box for each thing, in order."""
    parts: list[str | Region] = [lead]
    for i, thing in enumerate(scene):
        if i:
            parts.append(" and " if i + 1 == len(scene) else ", ")
        look = thing.look if thing.look.texture == "striped" else replace(thing.look, texture=None)
        parts.append(Region(noun(look), to_thousandths(thing.box)))
    return Chain.of((*parts, "."))


def fill(look: Look, rng: random.Random) -> Look:
    """A full look that the given one admits."""
    return Look(look.shape or rng.choice(SHAPES), look.color or rng.choice(tuple(COLORS)), look.texture or rng.choice(TEXTURES))


def paint_wish(wish: Wish, rng: random.Random) -> Scene:
    """A scene that grants the wish, otherwise free; things in the wish's order."""
    order = tuple(range(len(wish.things)))
    boxes = place(len(wish.things), rng, lambda boxes: kept_relations(wish, order, boxes) == 1)
    return tuple(Thing(fill(look, rng), box) for look, box in zip(wish.things, boxes, strict=True))


def mistake(made: Phrase, rng: random.Random) -> Wish:
    """The wish as a careless annotator reads it."""
    things, relations = list(made.wish.things), made.wish.relations
    if relations:
        (name, i, j), *rest = relations
        return Wish(tuple(things), ((OPPOSITE[name], i, j), *rest))
    if made.category == "numeracy":
        if len(things) == MAX_THINGS or (things.count(things[0]) > 1 and rng.random() < 0.5):
            return Wish(tuple(things[1:]))
        return Wish((things[0], *things))
    a, b = things
    if made.category == "color":
        return Wish((replace(a, color=b.color), replace(b, color=a.color)))
    if made.category == "texture":
        return Wish((replace(a, texture=b.texture), replace(b, texture=a.texture)))
    return Wish((a, replace(b, shape=rng.choice([s for s in SHAPES if s not in (a.shape, b.shape)]))))


def annotated(split: str, seed: int, index: int, *, clean: bool = False) -> Annotated:
    """Supervised example ``index``; a function of its arguments alone. ``clean`` leaves the noise out."""
    made = phrase(split, seed, index)
    rng = random.Random(f"annotate/{split}/{seed}/{index}")
    wrong = made.hard and not clean and rng.random() < WRONG_SHARE
    wish = mistake(made, rng) if wrong else made.wish
    scene = paint_wish(wish, rng)
    while wrong and granted_by(made.wish, scene):  # a mistake may still grant an open wish by chance
        scene = paint_wish(wish, rng)
    return Annotated(made, scene, describe(scene, rng.choice(LEADS)), wrong)
