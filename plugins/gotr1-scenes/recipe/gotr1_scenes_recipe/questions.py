"""What the small judge is asked about a sample, with the exact judge's answers.

Each sample is asked about with its own prompt, with one that says one thing otherwise, and with some about how its things stand.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from gotr1_core.chain import SCALE, Chain
from gotr1_core.pictures.draw_chain import draw_chain
from gotr1_core.samples import Prompt, Sample
from gotr1_scenes.annotate import annotated, describe_scene
from gotr1_scenes.judge import SceneLayout, ScenesJudge, look_of, match, picture_layout, plan_layout, prompt_wish
from gotr1_scenes.language import (
    COUNTS,
    GROUPS,
    INVERTED_RELATIONS,
    PLAIN_RELATIONS,
    SIDES,
    STRIPES,
    WORDS,
    has_held_out_pair,
    is_validation_text,
    noun,
)
from gotr1_scenes.reader import read_things
from gotr1_scenes.source import as_prompt
from gotr1_scenes.understand import read_wish
from gotr1_scenes.wish import Wish
from gotr1_scenes.world import (
    CANVAS,
    CELL,
    COLORS,
    MAX_THINGS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Look,
    Thing,
    holds,
    place_boxes,
    random_look,
)
from gotr1_scenes_recipe.samples import EXAMPLES, changed_scene, other_look
from gotr1_scenes_recipe.verdicts import MOST_THINGS, as_phrased, on_grid, relation_text, request_text, verdict

CANVAS_SIDE = 448  # pixels of the canvas that a judge is shown for spa
BOX = "<box>{}</box>"
HAS = "has"  # no reward: how nearly one thing is there or named, which teaches to compare
NAMES = "names"  # no reward: which things a plan names, which teaches to copy
ASKS = "asks"  # no reward: what a prompt asks for, as a verdict begins
STANDS = "stands"  # no reward: whether two things of given places stand so, as a verdict says it
DRILLS = ((NAMES, 1), (ASKS, 2), (STANDS, 6))  # short questions for each sample: parts of a verdict, many times for the price of one
WRITTEN = {"pi": "pi-written", "spa": "spa-written"}  # the same rewards, with a description and reasons before the score

SIDES_SAID = (("left", "right"), ("above", "below"))
SAID = tuple(tuple(table.values()) for table in (STRIPES, COUNTS, GROUPS))
EXCHANGED: tuple[tuple[str, ...], ...] = (tuple(COLORS), SHAPES, TEXTURES, *SAID, *SIDES_SAID)

Cell = tuple[int, int, int, int, int] | None
"""What a square of eight of the world's pixels is part of: its number, and its box on the grid; None where that cannot be told."""

KINDS = {look: number for number, look in enumerate((s, c, t) for s in SHAPES for c in COLORS for t in TEXTURES)}
EMPTY = len(KINDS) + MAX_THINGS  # after the looks, and after the colours of a canvas's boxes


@dataclass(frozen=True)
class TaughtPicture:
    """A picture, and what is in its cells, row by row."""

    image: Image.Image
    picture_cells: tuple[Cell, ...]


@dataclass(frozen=True)
class TaughtQuestion:
    """A question by its rubric's fields, the number of its picture (None: it has none), and its answer: a score in [0,1], or text."""

    reward: str
    fields: Mapping[str, str]
    picture: int | None
    answer: float | str
    parts: tuple[int, ...] = ()  # what a score is made of, see :func:`score_parts`
    there: tuple[Look, ...] = ()  # what is in the picture or the plan that is asked about
    places: tuple[tuple[int, ...], ...] = ()  # the boxes of these things on the world's grid, where there is a picture
    first_box: tuple[int, ...] = ()  # the box of the first thing in the picture that is what a phrase says, on the world's grid


# -- questions --------------------------------------------------------------------------------------------------------------


def make_questions(samples: Sequence[Sample], sketched: int, rng: random.Random) -> tuple[list[TaughtPicture], list[TaughtQuestion]]:
    """Pictures and questions about them: ``pi``, ``ri``, ``spa`` of the first ``sketched`` ones' canvases, ``sem``.

    Each is asked with its own prompt and with one that is nearly the same; verdicts also with prompts about how its things stand.
    """
    images: list[TaughtPicture] = []
    asked: list[TaughtQuestion] = []
    for number, sample in enumerate(samples):
        if sample.image is None:
            continue
        images.append(TaughtPicture(sample.image, picture_cells(sample.image)))
        prompts = [sample.prompt, near_prompt(sample.prompt, rng)]
        there = picture_layout(read_things(sample.image), sample.image.size)
        asked += _scored("pi", sample, prompts, len(images) - 1)
        asked += _told("pi", sample, there, [*prompts, *_standing(there, rng)], len(images) - 1)
        phrases = _phrases(sample, rng)
        asked += [
            TaughtQuestion(
                "ri", {"phrase": phrase}, len(images) - 1, boxes_answer(sample.image, phrase), where=first_box(sample.image, phrase)
            )
            for phrase in phrases[:2]
        ]
        asked += _compared(sample, phrases, rng, len(images) - 1)
        if not sample.chain.well_formed or not sample.chain.regions:
            continue  # which costs a judge no question
        asked += _scored("sem", sample, prompts, None)
        if number < sketched:
            named = plan_layout(sample.chain)
            images.append(TaughtPicture(draw_chain(sample.chain, (CANVAS_SIDE, CANVAS_SIDE)), sketch_cells(sample.chain)))
            asked += _scored("spa", sample, prompts, len(images) - 1)
            about = [*prompts[: 1 + _relates(sample.prompt)], *_standing(named, rng), *_standing(named, rng)]
            asked += _told("spa", sample, named, about, len(images) - 1)
    asked += [_drill(kind, rng) for kind, count in DRILLS for _ in range(count * len(samples))]
    return images, asked


def _drill(kind: str, rng: random.Random) -> TaughtQuestion:
    """A short question about a text of training."""
    made = annotated("train", 0, rng.randrange(EXAMPLES))
    if kind == ASKS:
        return TaughtQuestion(ASKS, {"plan": made.phrase.text}, None, f" {request_text(made.phrase.wish)}")
    if kind == NAMES:
        scene = changed_scene(made.scene, rng)
        names = [noun(as_phrased(thing.look), article=False) for thing in scene]
        return TaughtQuestion(NAMES, {"plan": describe_scene(scene, "There is ").without_boxes()}, None, f" {'; '.join(names)}")
    a, b = place_boxes(2, rng)
    relation = _said_of(a, b, rng)
    order = rng.choice((("first", "second"), ("second", "first")))
    things = [
        (number, replace(random_look(rng), texture=None), " ".join(map(str, on_grid(box))))
        for number, box in zip(order, (a, b), strict=True)
    ]
    return TaughtQuestion(STANDS, {"plan": f" {relation_text(relation, *things)}"}, None, " yes" if holds(relation, a, b) else " no")


def _said_of(a: Sequence[float], b: Sequence[float], rng: random.Random) -> str:
    """A relation of two boxes, which holds or not as often, as far as one does."""
    said = rng.choice([relation for relation in RELATIONS if holds(relation, a, b)] or RELATIONS)
    return said if rng.random() < 0.5 else OPPOSITE[said]


def _relates(prompt: Prompt) -> bool:
    wish = prompt_wish(prompt)
    return wish is not None and bool(wish.relations)


def _told(reward: str, sample: Sample, found: SceneLayout, prompts: Sequence[Prompt], picture: int) -> list[TaughtQuestion]:
    """Written verdicts about what is ``found`` in a picture or a plan."""
    if len(found.looks) > MOST_THINGS:
        return []
    plan = sample.chain.without_boxes()
    wishes = [prompt_wish(prompt) or Wish(()) for prompt in prompts]
    return [
        TaughtQuestion(WRITTEN[reward], {"prompt": prompt.text, "plan": plan}, picture, verdict(wish, found, sketch=reward == "spa"))
        for prompt, wish in zip(prompts, wishes, strict=True)
    ]


def near_prompt(prompt: Prompt, rng: random.Random) -> Prompt:
    """The prompt with one word for another of its kind, which takes its place where it is said too; any other prompt if that says nothing.

    It is what tells a judge that binds and relates from one that counts words. No text of the validation split is made.
    """
    for _ in range(8):
        kinds = [kind for kind in EXCHANGED if re.search(_any_of(kind), prompt.text)]
        sides = [kind for kind in kinds if kind in SIDES_SAID]
        kind = rng.choice(sides if sides and rng.random() < 0.5 else kinds)
        said = sorted({found[0] for found in re.finditer(_any_of(kind), prompt.text)})
        one = rng.choice(said)
        other = rng.choice([word for word in (said if len(said) > 1 and rng.random() < 0.5 else kind) if word != one])
        turned = {one: other, other: one}
        text = re.sub(_any_of(kind), lambda found, turned=turned: turned.get(found[0], found[0]), prompt.text)  # type: ignore[misc]
        wish = read_wish(text)
        if wish is not None and not (is_validation_text(text) or has_held_out_pair(wish)):
            return replace(prompt, text=text, metadata=wish.as_metadata())
    return _another(prompt.category, rng)


def _any_of(words: Sequence[str]) -> str:
    """A pattern for each of some words, also where it is the beginning of its plural."""
    return rf"\b(?:{'|'.join(words)})(?=(?:e?s)?\b)"


def _another(category: str | None, rng: random.Random) -> Prompt:
    while True:
        prompt = as_prompt(annotated("train", 0, rng.randrange(EXAMPLES)).phrase, "")
        if prompt.category == category:
            return prompt


def _scored(reward: str, sample: Sample, prompts: Sequence[Prompt], picture: int | None) -> list[TaughtQuestion]:
    cases = [replace(sample, prompt=prompt) for prompt in prompts]
    scores = ScenesJudge().score(cases, [reward])[reward]
    plan, found = sample.chain.without_boxes(), plan_layout(sample.chain)
    if reward == "pi" and sample.image is not None:
        found = picture_layout(read_things(sample.image), sample.image.size)
    wishes = [prompt_wish(case.prompt) or Wish(()) for case in cases]
    return [
        TaughtQuestion(
            reward,
            {"prompt": c.prompt.text, "plan": plan},
            picture,
            score,
            score_parts(wish, found, placed=reward != "sem"),
            found.looks,
            () if picture is None else grid_boxes(found),
        )
        for c, score, wish in zip(cases, scores, wishes, strict=True)
    ]


def grid_boxes(found: SceneLayout) -> tuple[tuple[int, ...], ...]:
    """Boxes, which are fractions, on the world's grid."""
    return tuple(on_grid([CANVAS * v for v in box]) for box in found.boxes)


PARTS = (*[8] * MAX_THINGS, 6, 6, 3)
"""How many values each part of a score has."""


def score_parts(wish: Wish, found: SceneLayout, *, placed: bool = True) -> tuple[int, ...]:
    """What a score is made of: how well each wished thing is matched, how many are there, how many are wished, whether relations hold."""
    table = [[want.agreement(look) for look in found.looks] for want in wish.things]
    array = np.array(table, float).reshape(len(wish.things), len(found.looks))
    agreed = {int(i): float(array[i, k]) for i, k in zip(*linear_sum_assignment(array, maximize=True), strict=True)}
    things = [1 + round(6 * agreed.get(i, 0.0)) if i < len(wish.things) else 0 for i in range(MAX_THINGS)]
    related = 0 if not wish.relations or not placed else 1 if match(wish, found)[1] == 1 else 2
    return (*things, min(5, len(found.looks)), min(5, len(wish.things)), related)


def _phrases(sample: Sample, rng: random.Random) -> list[str]:
    """Three things to look for: of the plan, of the picture, and any."""
    assert sample.image is not None
    there = [thing.look for thing in read_things(sample.image) if None not in (thing.look.shape, thing.look.color)]
    looks = [rng.choice(there) if there else random_look(rng), random_look(rng)]
    found = [noun(as_phrased(look)) for look in looks]
    return list(dict.fromkeys([*(rng.sample([r.phrase for r in sample.chain.regions], 1) if sample.chain.regions else []), *found]))


def _compared(sample: Sample, phrases: Sequence[str], rng: random.Random, picture: int) -> list[TaughtQuestion]:
    """How nearly each phrase, and one that is nearly right, is in the picture; and how nearly two of them are in the plan."""
    assert sample.image is not None
    there, named = picture_layout(read_things(sample.image), sample.image.size), plan_layout(sample.chain)
    near = [noun(as_phrased(other_look(look, rng))) for look in (*there.looks, *named.looks) if None not in (look.shape, look.color)]
    asked: list[tuple[str, int | None, SceneLayout]] = [(phrase, picture, there) for phrase in (*phrases[:1], *near[:1])]
    asked += [(phrase, None, named) for phrase in near[-1:]]
    plan = sample.chain.without_boxes()
    made = []
    for phrase, at, found in asked:
        look = look_of(phrase)
        answer = max((look.agreement(other) for other in found.looks), default=0.0)
        place, places = ((), ()) if at is None else (first_box(sample.image, phrase), grid_boxes(found))
        parts = score_parts(Wish((look,)), found)
        made.append(
            TaughtQuestion(HAS, {"phrase": phrase, "plan": plan if at is None else ""}, at, answer, parts, found.looks, places, place)
        )
    return made


def _standing(found: SceneLayout, rng: random.Random) -> list[Prompt]:
    """A prompt of how two things stand that one noun phrase tells from all others, right and wrong as often; none of validation is made."""
    nouns = [noun(as_phrased(look)) for look in found.looks]
    known = [k for k, look in enumerate(found.looks) if None not in (look.shape, look.color) and nouns.count(nouns[k]) == 1]
    if len(known) < 2:
        return []
    i, j = rng.sample(known, 2)
    relation = _said_of(found.boxes[i], found.boxes[j], rng)
    phrasing = rng.choice(PLAIN_RELATIONS + INVERTED_RELATIONS)
    text = phrasing.format(a=nouns[i], b=nouns[j], of=WORDS[relation], its=SIDES[relation])
    looks = (as_phrased(found.looks[i]), as_phrased(found.looks[j]))
    wish = Wish(looks[::-1], ((relation, 1, 0),)) if phrasing in INVERTED_RELATIONS else Wish(looks, ((relation, 0, 1),))
    return [] if is_validation_text(text) or has_held_out_pair(wish) else [Prompt(text, metadata=wish.as_metadata())]


def picture_cells(image: Image.Image) -> tuple[Cell, ...]:
    """Of a picture, as the exact reader sees it."""
    found = []
    for thing in read_things(image):
        look = (thing.look.shape, thing.look.color, thing.look.texture)
        found.append((KINDS.get(look, -1), [v * CANVAS / image.width for v in thing.box]))  # type: ignore[arg-type]
    return _cells(found)


def sketch_cells(chain: Chain) -> tuple[Cell, ...]:
    """Of a canvas: which box of the plan, a later one over an earlier one."""
    return _cells([(len(KINDS) + k % MAX_THINGS, [v * CANVAS / SCALE for v in r.box]) for k, r in enumerate(chain.regions)])


def _cells(things: Sequence[tuple[int, Sequence[float]]]) -> tuple[Cell, ...]:
    side = CANVAS // CELL
    grid: list[Cell] = [(EMPTY, 0, 0, 0, 0)] * side**2
    for number, box in things:
        x1, y1, x2, y2 = on_grid(box)
        for at in range(side**2):
            x, y = (2 * v for v in (at % side, at // side))  # a cell is two squares of the grid wide
            if x1 < x + 2 and x < x2 and y1 < y + 2 and y < y2:
                grid[at] = None if number < 0 else (number, x1, y1, x2, y2)
    return tuple(grid)


def first_box(image: Image.Image, phrase: str) -> tuple[int, ...]:
    """The box on the grid of the first thing that is what a phrase says; nothing where there is none."""
    look = look_of(phrase)
    found = [thing.box for thing in _in_order(image) if look.admits(thing.look)]
    return on_grid([v * CANVAS / image.width for v in found[0]]) if found else ()


def boxes_answer(image: Image.Image, phrase: str) -> str:
    """Where a phrase is, as InternVL answers: thousandths of width and height, from the top and then from the left."""
    look = look_of(phrase)
    return _boxed([thing for thing in _in_order(image) if look.admits(thing.look)], image)


def _in_order(image: Image.Image) -> list[Thing]:
    return sorted(read_things(image), key=lambda thing: (thing.box[1], thing.box[0]))


def _boxed(things: Sequence[Thing], image: Image.Image) -> str:
    width, height = image.size
    scaled = [[round(1000 * v / (height if k % 2 else width)) for k, v in enumerate(thing.box)] for thing in things]
    return BOX.format(json.dumps(scaled))
