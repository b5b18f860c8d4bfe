"""Makes the questions that the small judge learns from: about a sample, with the exact judge's answers.

Each sample has questions with its own prompt, with a prompt that differs in one word, and with prompts about the relations of its things.
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
from gotr1_scenes_recipe.verdicts import MAX_VERDICT_THINGS, as_phrased, on_grid, relation_text, request_text, verdict

CANVAS_SIDE = 448  # pixels of the canvas that a judge sees for spa
BOX = "<box>{}</box>"
HAS = "has"  # no reward: how similar one thing is to what is there or named; teaches to compare
NAMES = "names"  # no reward: which things a plan names; teaches to copy
ASKS = "asks"  # no reward: what a prompt asks for, the beginning of a verdict
STANDS = "stands"  # no reward: whether two things at given places have a relation, in the words of a verdict
DRILLS = ((NAMES, 1), (ASKS, 2), (STANDS, 6))  # short questions per sample: parts of a verdict, much cheaper than full verdicts
WRITTEN = {"pi": "pi-written", "spa": "spa-written"}  # the same rewards, with a description and reasons before the score

SIDE_WORDS = (("left", "right"), ("above", "below"))
OTHER_WORDS = tuple(tuple(table.values()) for table in (STRIPES, COUNTS, GROUPS))
EXCHANGED: tuple[tuple[str, ...], ...] = (tuple(COLORS), SHAPES, TEXTURES, *OTHER_WORDS, *SIDE_WORDS)
"""Kinds of words. A word of a prompt may be exchanged for another of its kind."""

Cell = tuple[int, int, int, int, int] | None
"""What an 8x8 cell of the world's pixels belongs to: the number of its look and its box on the grid. None if the look is unknown."""

KINDS = {look: number for number, look in enumerate((s, c, t) for s in SHAPES for c in COLORS for t in TEXTURES)}
EMPTY = len(KINDS) + MAX_THINGS  # comes after the numbers of looks and of a canvas's boxes


@dataclass(frozen=True)
class TaughtPicture:
    """A picture, and the content of its cells, row by row."""

    image: Image.Image
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class TaughtQuestion:
    """A question: its rubric's fields, the number of its picture (or None), and its answer, which is a score in [0,1] or a text."""

    reward: str
    fields: Mapping[str, str]
    picture: int | None
    answer: float | str
    parts: tuple[int, ...] = ()  # the parts of a score, see :func:`score_parts`
    looks: tuple[Look, ...] = ()  # the things in the picture or plan
    boxes: tuple[tuple[int, ...], ...] = ()  # their boxes on the world's grid, if there is a picture
    first_box: tuple[int, ...] = ()  # the box on the grid of the first thing in the picture that a phrase describes


# -- questions --------------------------------------------------------------------------------------------------------------


def make_questions(samples: Sequence[Sample], sketched: int, rng: random.Random) -> tuple[list[TaughtPicture], list[TaughtQuestion]]:
    """Returns pictures and questions about them: ``pi``, ``ri``, ``sem``, and ``spa`` with canvases of the first ``sketched`` samples.

    Each question has the sample's prompt, and a prompt that is nearly the same. Verdicts also have prompts about the things' relations.
    """
    images: list[TaughtPicture] = []
    questions: list[TaughtQuestion] = []
    for number, sample in enumerate(samples):
        if sample.image is None:
            continue
        images.append(TaughtPicture(sample.image, picture_cells(sample.image)))
        prompts = [sample.prompt, near_prompt(sample.prompt, rng)]
        layout = picture_layout(read_things(sample.image), sample.image.size)
        questions += _scored("pi", sample, prompts, len(images) - 1)
        questions += _with_verdicts("pi", sample, layout, [*prompts, *_relation_prompts(layout, rng)], len(images) - 1)
        phrases = _phrases(sample, rng)
        questions += [
            TaughtQuestion(
                "ri", {"phrase": phrase}, len(images) - 1, boxes_answer(sample.image, phrase), first_box=first_box(sample.image, phrase)
            )
            for phrase in phrases[:2]
        ]
        questions += _comparisons(sample, phrases, rng, len(images) - 1)
        if not sample.chain.well_formed or not sample.chain.regions:
            continue  # a judge asks no question about such a plan
        questions += _scored("sem", sample, prompts, None)
        if number < sketched:
            plan = plan_layout(sample.chain)
            images.append(TaughtPicture(draw_chain(sample.chain, (CANVAS_SIDE, CANVAS_SIDE)), sketch_cells(sample.chain)))
            questions += _scored("spa", sample, prompts, len(images) - 1)
            about = [*prompts[: 1 + _has_relations(sample.prompt)], *_relation_prompts(plan, rng), *_relation_prompts(plan, rng)]
            questions += _with_verdicts("spa", sample, plan, about, len(images) - 1)
    questions += [_drill(kind, rng) for kind, count in DRILLS for _ in range(count * len(samples))]
    return images, questions


def _drill(kind: str, rng: random.Random) -> TaughtQuestion:
    """Returns a short question about a text of the training split."""
    made = annotated("train", 0, rng.randrange(EXAMPLES))
    if kind == ASKS:
        return TaughtQuestion(ASKS, {"plan": made.phrase.text}, None, f" {request_text(made.phrase.wish)}")
    if kind == NAMES:
        scene = changed_scene(made.scene, rng)
        names = [noun(as_phrased(thing.look), article=False) for thing in scene]
        return TaughtQuestion(NAMES, {"plan": describe_scene(scene, "There is ").without_boxes()}, None, f" {'; '.join(names)}")
    a, b = place_boxes(2, rng)
    relation = _random_relation(a, b, rng)
    order = rng.choice((("first", "second"), ("second", "first")))
    things = [
        (number, replace(random_look(rng), texture=None), " ".join(map(str, on_grid(box))))
        for number, box in zip(order, (a, b), strict=True)
    ]
    return TaughtQuestion(STANDS, {"plan": f" {relation_text(relation, *things)}"}, None, " yes" if holds(relation, a, b) else " no")


def _random_relation(a: Sequence[float], b: Sequence[float], rng: random.Random) -> str:
    """Draws a relation of two boxes. If any relation holds between them, the drawn one holds with probability 0.5."""
    relation = rng.choice([relation for relation in RELATIONS if holds(relation, a, b)] or RELATIONS)
    return relation if rng.random() < 0.5 else OPPOSITE[relation]


def _has_relations(prompt: Prompt) -> bool:
    wish = prompt_wish(prompt)
    return wish is not None and bool(wish.relations)


def _with_verdicts(reward: str, sample: Sample, layout: SceneLayout, prompts: Sequence[Prompt], picture: int) -> list[TaughtQuestion]:
    """Returns questions whose answers are written verdicts about the ``layout`` of a picture or a plan."""
    if len(layout.looks) > MAX_VERDICT_THINGS:
        return []
    plan = sample.chain.without_boxes()
    wishes = [prompt_wish(prompt) or Wish(()) for prompt in prompts]
    return [
        TaughtQuestion(WRITTEN[reward], {"prompt": prompt.text, "plan": plan}, picture, verdict(wish, layout, sketch=reward == "spa"))
        for prompt, wish in zip(prompts, wishes, strict=True)
    ]


def near_prompt(prompt: Prompt, rng: random.Random) -> Prompt:
    """Returns the prompt with two words of a kind exchanged, everywhere. If that gives no valid prompt, it is another of the category.

    With such prompts a judge cannot just count words: it must bind attributes and relate things. No text is of the validation split.
    """
    for _ in range(8):
        kinds = [kind for kind in EXCHANGED if re.search(_any_of(kind), prompt.text)]
        sides = [kind for kind in kinds if kind in SIDE_WORDS]
        kind = rng.choice(sides if sides and rng.random() < 0.5 else kinds)
        present = sorted({match[0] for match in re.finditer(_any_of(kind), prompt.text)})
        old = rng.choice(present)
        new = rng.choice([word for word in (present if len(present) > 1 and rng.random() < 0.5 else kind) if word != old])
        exchange = {old: new, new: old}
        text = re.sub(_any_of(kind), lambda match, exchange=exchange: exchange.get(match[0], match[0]), prompt.text)  # type: ignore[misc]
        wish = read_wish(text)
        if wish is not None and not (is_validation_text(text) or has_held_out_pair(wish)):
            return replace(prompt, text=text, metadata=wish.as_metadata())
    return _other_prompt(prompt.category, rng)


def _any_of(words: Sequence[str]) -> str:
    """Returns a pattern for any of some words, also at the beginning of its plural."""
    return rf"\b(?:{'|'.join(words)})(?=(?:e?s)?\b)"


def _other_prompt(category: str | None, rng: random.Random) -> Prompt:
    """Draws a training prompt of a category."""
    while True:
        prompt = as_prompt(annotated("train", 0, rng.randrange(EXAMPLES)).phrase, "")
        if prompt.category == category:
            return prompt


def _scored(reward: str, sample: Sample, prompts: Sequence[Prompt], picture: int | None) -> list[TaughtQuestion]:
    """Returns a question per prompt whose answer is the exact judge's score."""
    cases = [replace(sample, prompt=prompt) for prompt in prompts]
    scores = ScenesJudge().score(cases, [reward])[reward]
    plan, layout = sample.chain.without_boxes(), plan_layout(sample.chain)
    if reward == "pi" and sample.image is not None:
        layout = picture_layout(read_things(sample.image), sample.image.size)
    wishes = [prompt_wish(case.prompt) or Wish(()) for case in cases]
    return [
        TaughtQuestion(
            reward,
            {"prompt": c.prompt.text, "plan": plan},
            picture,
            score,
            score_parts(wish, layout, placed=reward != "sem"),
            layout.looks,
            () if picture is None else grid_boxes(layout),
        )
        for c, score, wish in zip(cases, scores, wishes, strict=True)
    ]


def grid_boxes(layout: SceneLayout) -> tuple[tuple[int, ...], ...]:
    """Returns a layout's boxes, which are fractions, on the world's grid."""
    return tuple(on_grid([CANVAS * v for v in box]) for box in layout.boxes)


PARTS = (*[8] * MAX_THINGS, 6, 6, 3)
"""The number of values of each part of a score."""


def score_parts(wish: Wish, layout: SceneLayout, *, placed: bool = True) -> tuple[int, ...]:
    """Returns the parts of a score: the match of each wished thing, the number of things, the number wished, whether relations hold."""
    table = [[wished.agreement(look) for look in layout.looks] for wished in wish.things]
    array = np.array(table, float).reshape(len(wish.things), len(layout.looks))
    agreed = {int(i): float(array[i, k]) for i, k in zip(*linear_sum_assignment(array, maximize=True), strict=True)}
    things = [1 + round(6 * agreed.get(i, 0.0)) if i < len(wish.things) else 0 for i in range(MAX_THINGS)]
    related = 0 if not wish.relations or not placed else 1 if match(wish, layout)[1] == 1 else 2
    return (*things, min(5, len(layout.looks)), min(5, len(wish.things)), related)


def _phrases(sample: Sample, rng: random.Random) -> list[str]:
    """Draws up to three phrases to look for: one of the plan, one of the picture, and a random one."""
    assert sample.image is not None
    visible = [thing.look for thing in read_things(sample.image) if None not in (thing.look.shape, thing.look.color)]
    looks = [rng.choice(visible) if visible else random_look(rng), random_look(rng)]
    nouns = [noun(as_phrased(look)) for look in looks]
    return list(dict.fromkeys([*(rng.sample([r.phrase for r in sample.chain.regions], 1) if sample.chain.regions else []), *nouns]))


def _comparisons(sample: Sample, phrases: Sequence[str], rng: random.Random, picture: int) -> list[TaughtQuestion]:
    """Returns questions how similar a phrase is to the picture's or the plan's nearest thing. Some phrases differ in one attribute."""
    assert sample.image is not None
    drawn, planned = picture_layout(read_things(sample.image), sample.image.size), plan_layout(sample.chain)
    near = [noun(as_phrased(other_look(look, rng))) for look in (*drawn.looks, *planned.looks) if None not in (look.shape, look.color)]
    cases: list[tuple[str, int | None, SceneLayout]] = [(phrase, picture, drawn) for phrase in (*phrases[:1], *near[:1])]
    cases += [(phrase, None, planned) for phrase in near[-1:]]
    plan = sample.chain.without_boxes()
    questions = []
    for phrase, at, layout in cases:
        look = look_of(phrase)
        answer = max((look.agreement(other) for other in layout.looks), default=0.0)
        box, boxes = ((), ()) if at is None else (first_box(sample.image, phrase), grid_boxes(layout))
        parts = score_parts(Wish((look,)), layout)
        fields = {"phrase": phrase, "plan": plan if at is None else ""}
        questions.append(TaughtQuestion(HAS, fields, at, answer, parts, layout.looks, boxes, box))
    return questions


def _relation_prompts(layout: SceneLayout, rng: random.Random) -> list[Prompt]:
    """Returns a prompt about the relation of two things, or none.

    Each of the two has a noun phrase of its own. The relation is right or wrong equally often. No prompt is of the validation split.
    """
    nouns = [noun(as_phrased(look)) for look in layout.looks]
    unique = [k for k, look in enumerate(layout.looks) if None not in (look.shape, look.color) and nouns.count(nouns[k]) == 1]
    if len(unique) < 2:
        return []
    i, j = rng.sample(unique, 2)
    relation = _random_relation(layout.boxes[i], layout.boxes[j], rng)
    phrasing = rng.choice(PLAIN_RELATIONS + INVERTED_RELATIONS)
    text = phrasing.format(a=nouns[i], b=nouns[j], of=WORDS[relation], its=SIDES[relation])
    looks = (as_phrased(layout.looks[i]), as_phrased(layout.looks[j]))
    wish = Wish(looks[::-1], ((relation, 1, 0),)) if phrasing in INVERTED_RELATIONS else Wish(looks, ((relation, 0, 1),))
    return [] if is_validation_text(text) or has_held_out_pair(wish) else [Prompt(text, metadata=wish.as_metadata())]


def picture_cells(image: Image.Image) -> tuple[Cell, ...]:
    """Returns the cells of a picture, as the exact reader reads it."""
    things = []
    for thing in read_things(image):
        look = (thing.look.shape, thing.look.color, thing.look.texture)
        things.append((KINDS.get(look, -1), [v * CANVAS / image.width for v in thing.box]))  # type: ignore[arg-type]
    return _cells(things)


def sketch_cells(chain: Chain) -> tuple[Cell, ...]:
    """Returns the cells of a canvas. Where boxes of the plan overlap, the later one counts."""
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
    """Returns the box on the grid of the first thing that a phrase describes, or an empty tuple."""
    look = look_of(phrase)
    boxes = [thing.box for thing in _in_order(image) if look.admits(thing.look)]
    return on_grid([v * CANVAS / image.width for v in boxes[0]]) if boxes else ()


def boxes_answer(image: Image.Image, phrase: str) -> str:
    """Returns the boxes of a phrase in InternVL's format: thousandths of width and height, ordered from the top, then from the left."""
    look = look_of(phrase)
    return _format_boxes([thing for thing in _in_order(image) if look.admits(thing.look)], image)


def _in_order(image: Image.Image) -> list[Thing]:
    return sorted(read_things(image), key=lambda thing: (thing.box[1], thing.box[0]))


def _format_boxes(things: Sequence[Thing], image: Image.Image) -> str:
    width, height = image.size
    scaled = [[round(1000 * v / (height if k % 2 else width)) for k, v in enumerate(thing.box)] for thing in things]
    return BOX.format(json.dumps(scaled))
