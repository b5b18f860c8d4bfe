"""Makes supervised data: prompt, chain and picture, with annotation noise on purpose.

Automatic annotation is worst on hard phrasings. Here the hard phrasings of every category are annotated *wrong more often than right*
(65 %): a relation is reversed, colours or textures are swapped, a shape is wrong, or a count is off by one. The picture follows the chain.
So the most likely plan of a model trained on this data is wrong for these phrasings. Reinforcement learning must change it: to sharpen
what the model does already is not enough.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from gotr1_core.chain import SCALE, Chain, Region
from gotr1_scenes.language import Phrase, noun, phrase
from gotr1_scenes.wish import Wish, granted_by, kept_relations
from gotr1_scenes.world import CANVAS, COLORS, MAX_THINGS, OPPOSITE, SHAPES, TEXTURES, Box, Look, Scene, Thing, place_boxes

WRONG_SHARE = 0.65
LEADS = ("The picture shows ", "There is ")


@dataclass(frozen=True)
class Annotated:
    """One supervised example: the prompt, the scene painted for it, the chain of that scene, and whether the scene is wrong."""

    phrase: Phrase
    scene: Scene
    chain: Chain
    wrong: bool


def to_thousandths(box: Box) -> tuple[int, int, int, int]:
    """Converts a box from pixels of the canvas to a chain's unit, 0 to 999."""
    x1, y1, x2, y2 = (round(v * SCALE / CANVAS) for v in box)
    return x1, y1, x2, y2


def describe_scene(scene: Scene, lead: str) -> Chain:
    """Returns the chain of a scene: prose with a phrase and a box for each thing, in order. ``lead`` is its beginning."""
    parts: list[str | Region] = [lead]
    for i, thing in enumerate(scene):
        if i:
            parts.append(" and " if i + 1 == len(scene) else ", ")
        look = thing.look if thing.look.texture == "striped" else replace(thing.look, texture=None)
        parts.append(Region(noun(look), to_thousandths(thing.box)))
    return Chain.of((*parts, "."))


def complete_look(look: Look, rng: random.Random) -> Look:
    """Returns a full look that ``look`` admits. Open attributes are drawn at random."""
    return Look(look.shape or rng.choice(SHAPES), look.color or rng.choice(tuple(COLORS)), look.texture or rng.choice(TEXTURES))


def paint_wish(wish: Wish, rng: random.Random) -> Scene:
    """Draws a scene that grants the wish. Its things are in the wish's order; all that the wish leaves open is random."""
    order = tuple(range(len(wish.things)))
    boxes = place_boxes(len(wish.things), rng, lambda boxes: kept_relations(wish, order, boxes) == 1)
    return tuple(Thing(complete_look(look, rng), box) for look, box in zip(wish.things, boxes, strict=True))


def mistaken_wish(made: Phrase, rng: random.Random) -> Wish:
    """Returns the wish with the mistake of a careless annotator, which depends on the category."""
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
    """Returns supervised example number ``index``. It depends on the arguments alone.

    Args:
        split: ``train`` or ``validation``.
        seed: of the split.
        index: of the example.
        clean: without annotation noise.
    """
    made = phrase(split, seed, index)
    rng = random.Random(f"annotate/{split}/{seed}/{index}")
    wrong = made.hard and not clean and rng.random() < WRONG_SHARE
    wish = mistaken_wish(made, rng) if wrong else made.wish
    scene = paint_wish(wish, rng)
    while wrong and granted_by(made.wish, scene):  # a scene with a mistake may still grant an open wish by chance
        scene = paint_wish(wish, rng)
    return Annotated(made, scene, describe_scene(scene, rng.choice(LEADS)), wrong)
