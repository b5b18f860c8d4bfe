"""The judge: every formula against hand-computed examples. No text and no picture makes it fail."""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from gotr1_core.chain import BOX_END, BOX_START, OBJ_END, OBJ_START, Chain, Region, iou, parse
from gotr1_core.errors import UsageError
from gotr1_core.samples import PLAN, Prompt, Sample, Words
from gotr1_scenes.annotate import describe_scene, paint_wish
from gotr1_scenes.judge import REWARDS, SceneLayout, ScenesJudge, look_of, match, plan_layout, plan_picture_iou, separate_share
from gotr1_scenes.language import phrase
from gotr1_scenes.measure import painted_truth
from gotr1_scenes.painter import paint
from gotr1_scenes.source import as_prompt
from gotr1_scenes.wish import Wish, kept_relations
from gotr1_scenes.world import OPPOSITE, Box, Look, Thing, random_look
from gotr1_scenes_recipe.pictures import random_scene

RED, BLUE, GREEN = Look("circle", "red"), Look("square", "blue"), Look("triangle", "green")
RED_LEFT_OF_BLUE = Wish((RED, BLUE), (("left", 0, 1),))
NAMES = list(REWARDS)
IMAGE_NAMES = [name for name, stage in REWARDS.items() if stage != PLAN]

# Thirds of the canvas: 16 pixels of 48 are 333 of 999, so planned and painted boxes are equal to the last bit.
THIRD = 333
Cell = tuple[int, int]


def chain(*regions: tuple[str, Cell]) -> Chain:
    """A chain of phrases, each in one of the canvas's nine fields, column and row."""
    parts: list[str | Region] = ["There is "]
    for text, (x, y) in regions:
        parts.append(Region(text, (THIRD * x, THIRD * y, THIRD * (x + 1), THIRD * (y + 1))))
        parts.append(" ")
    return Chain.of(parts)


def picture(*things: tuple[Look, Cell]) -> Image.Image:
    return paint(tuple(Thing(replace(look, texture=look.texture or "plain"), field(cell)) for look, cell in things))


def field(cell: Cell) -> Box:
    x, y = cell
    return 16 * x, 16 * y, 16 * x + 16, 16 * y + 16


def scores(wish: Wish, plan: Chain, image: Image.Image | None = None) -> dict[str, float]:
    sample = Sample(Prompt("", metadata=wish.as_metadata()), plan, image)
    return {name: values[0] for name, values in ScenesJudge().score([sample], NAMES).items()}


RIGHT = chain(("a red circle", (0, 0)), ("a blue square", (2, 0)))
RIGHT_PICTURE = picture((RED, (0, 0)), (BLUE, (2, 0)))


def test_everything_right() -> None:
    assert scores(RED_LEFT_OF_BLUE, RIGHT, RIGHT_PICTURE) == dict.fromkeys(NAMES, 1.0)


@pytest.mark.parametrize(
    ("regions", "sem", "spa", "plan_right"),
    [
        ([("a blue square", (2, 0)), ("a red circle", (0, 0))], 1, 1, 1),  # in any order
        ([("a blue square", (0, 0)), ("a red circle", (2, 0))], 1, 0, 0),  # reversed
        ([("a green circle", (0, 0)), ("a blue square", (2, 0))], 3 / 4, 1, 0),  # (1/2 + 1) / 2
        ([("a blue circle", (0, 0)), ("a red square", (2, 0))], 1 / 2, 1, 0),  # colours swapped
        ([("a red circle", (0, 0))], 1 / 2, 0, 0),  # one missing
        ([("a red circle", (0, 0)), ("a blue square", (2, 0)), ("a red circle", (1, 2))], 2 / 3, 1, 0),  # one too many
        ([("something", (0, 0)), ("a blue square", (2, 0))], 1 / 2, 1, 0),  # a phrase that says nothing of this world
        ([("a red circle", (0, 0)), ("a blue square", (1, 2))], 1, 0, 0),  # diagonal
        ([], 0, 0, 0),
    ],
)
def test_plans(regions: list[tuple[str, Cell]], sem: float, spa: float, plan_right: float) -> None:
    found = scores(RED_LEFT_OF_BLUE, chain(*regions))
    assert (found["sem"], found["spa"], found["plan_right"]) == pytest.approx((sem, spa, plan_right))


def test_textures_of_plans() -> None:
    wish = Wish((Look("circle", "red", "striped"), Look("square", None, "plain")))
    assert scores(wish, chain(("a striped red circle", (0, 0)), ("a blue square", (2, 0))))["sem"] == 1
    # Not called striped is plain: 2 of 3 attributes and 2 of 2.
    assert scores(wish, chain(("a red circle", (0, 0)), ("a blue square", (2, 0))))["sem"] == pytest.approx((2 / 3 + 1) / 2)


def test_overlapping_boxes_count_against_the_arrangement() -> None:
    wish = Wish((RED, BLUE, GREEN), (("left", 0, 1),))
    regions: list[str | Region] = [
        Region("a red circle", (0, 0, 300, 300)),
        Region("a blue square", (500, 0, 800, 300)),
        Region("a green triangle", (700, 200, 900, 400)),
    ]
    found = scores(wish, Chain.of(regions))
    assert found["spa"] == pytest.approx(1 / 3)
    assert (found["sem"], found["plan_right"]) == (1, 0)
    touching = Chain.of([*regions[:2], Region("a green triangle", (500, 300, 900, 400))])
    assert scores(wish, touching)["spa"] == 1


def test_without_relations_spa_asks_only_that_boxes_do_not_overlap() -> None:
    wish = Wish((RED, BLUE))
    assert scores(wish, chain(("a blue square", (0, 0)), ("a red circle", (2, 0))))["spa"] == 1
    assert scores(wish, chain(("a red circle", (0, 0)), ("a blue square", (0, 0))))["spa"] == 0


@pytest.mark.parametrize(
    ("things", "pi", "correct"),
    [
        ([(BLUE, (2, 0)), (RED, (0, 0))], 1, 1),
        ([(RED, (2, 0)), (BLUE, (0, 0))], 1 / 2, 0),  # reversed: 1 x (1 + 0) / 2
        ([(RED, (0, 0)), (BLUE, (2, 0)), (GREEN, (1, 2))], 2 / 3, 0),  # one too many: 2/3 x (1 + 1) / 2
        ([(RED, (0, 0))], 1 / 4, 0),  # one missing, and the relation with it: 1/2 x (1 + 0) / 2
        ([(Look("circle", "blue"), (0, 0)), (Look("square", "red"), (2, 0))], 1 / 2, 0),  # colours swapped: 1/2 x (1 + 1) / 2
        ([(replace(RED, texture="striped"), (0, 0)), (BLUE, (2, 0))], 1, 1),  # the prompt leaves the texture open
        ([], 0, 0),
    ],
)
def test_pictures(things: list[tuple[Look, Cell]], pi: float, correct: float) -> None:
    found = scores(RED_LEFT_OF_BLUE, RIGHT, picture(*things))
    assert (found["pi"], found["correct"]) == pytest.approx((pi, correct))


@pytest.mark.parametrize(
    ("regions", "things", "ri"),
    [
        ([("a red circle", (0, 0))], [(RED, (0, 0))], 1),
        ([("a red circle", (0, 0))], [(RED, (1, 0))], 0),  # elsewhere
        ([("a red circle", (0, 0))], [(BLUE, (0, 0))], 0),  # something else
        ([("a striped red circle", (0, 0))], [(RED, (0, 0))], 0),
        ([("a red circle", (0, 0)), ("a blue square", (2, 0))], [(RED, (0, 0))], 1 / 2),  # a missing one counts 0
        ([("a red circle", (0, 0)), ("a red circle", (0, 0))], [(RED, (0, 0))], 1 / 2),  # not both can have the one thing
        ([("a red circle", (2, 0)), ("a red circle", (0, 0))], [(RED, (0, 0)), (RED, (2, 0))], 1),
        ([("a red circle", (0, 0))], [(RED, (0, 0)), (BLUE, (2, 0))], 1),  # what the plan does not name does not matter
        ([("a red circle", (0, 0))], [], 0),
        ([("a circle", (0, 0))], [(RED, (0, 0))], 1),  # an open phrase takes any colour
    ],
)
def test_ri(regions: list[tuple[str, Cell]], things: list[tuple[Look, Cell]], ri: float) -> None:
    assert scores(RED_LEFT_OF_BLUE, chain(*regions), picture(*things))["ri"] == pytest.approx(ri)


def test_ri_is_the_intersection_over_the_union() -> None:
    shifted = paint((Thing(replace(RED, texture="plain"), (8, 0, 24, 16)),))
    # half of each box is shared: 128 pixels of 256 + 256 - 128
    assert scores(RED_LEFT_OF_BLUE, chain(("a red circle", (0, 0))), shifted)["ri"] == pytest.approx(1 / 3)


def test_ri_matches_for_the_largest_total() -> None:
    look = Look("circle", "red", "plain")
    plan = SceneLayout((look, look), ((0.0, 0.0, 0.4, 0.4), (0.0, 0.0, 0.3, 0.4)))
    seen = SceneLayout((look, look), ((0.0, 0.0, 0.4, 0.4), (0.2, 0.0, 0.6, 0.4)))
    # The first box's own thing is the other's best as well; 1 + (1/6) beats 0.75 + (1/3).
    assert plan_picture_iou(plan, seen) == pytest.approx((1 + 1 / 6) / 2)


def test_a_malformed_chain_scores_0_and_its_picture_is_scored() -> None:
    broken = parse(RIGHT.raw + OBJ_START)
    assert broken.regions == RIGHT.regions
    found = scores(RED_LEFT_OF_BLUE, broken, RIGHT_PICTURE)
    assert found == {"sem": 0, "spa": 0, "plan_right": 0, "ri": 0, "pi": 1, "correct": 1}


def test_a_chain_without_boxes() -> None:
    bare = parse(f"There is {OBJ_START}a red circle{OBJ_END} left of {OBJ_START}a blue square{OBJ_END}.")
    assert bare.well_formed
    found = scores(RED_LEFT_OF_BLUE, bare, RIGHT_PICTURE)
    assert found == {"sem": 0, "spa": 0, "plan_right": 0, "ri": 0, "pi": 1, "correct": 1}


def test_without_a_picture_its_scores_are_not_known() -> None:
    found = scores(RED_LEFT_OF_BLUE, RIGHT)
    assert all(math.isnan(found[name]) for name in IMAGE_NAMES)
    assert (found["sem"], found["spa"], found["plan_right"]) == (1, 1, 1)


@pytest.mark.parametrize(
    "metadata",
    [
        {"things": 3},
        {"things": [3]},
        {"things": [{"shape": "star"}]},
        {"things": [{"color": "red"}]},
        {"things": [{"shape": "circle", "colour": "red"}]},
        {"things": [{"shape": "circle"}], "relations": [["left", 0, 1]]},
        {"things": [{"shape": "circle"}, {"shape": "circle"}], "relations": [["left", 1, 1]]},
        {"things": [{"shape": "circle"}, {"shape": "circle"}], "relations": [["near", 0, 1]]},
        {"things": [{"shape": "circle"}], "relations": [["left"]]},
        {"things": [{"shape": ["circle"]}]},
        {"things": [{"shape": "circle"}, {"shape": "circle"}], "relations": [["left", [0], 1]]},
        {"things": [{"shape": "circle"}], "relations": 3},
    ],
)
def test_metadata_that_is_no_wish_is_an_error(metadata: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no wish of this world") as error:
        Wish.from_metadata(metadata)
    example = json.loads((error.value.hint or "").removeprefix("write it as "))
    assert Wish.from_metadata(example).relations == (("left", 0, 1),)


def test_a_prompt_without_a_wish_cannot_be_scored() -> None:
    found = ScenesJudge().score([Sample(Prompt("a dog"), RIGHT, RIGHT_PICTURE)], NAMES)
    assert all(math.isnan(value) for values in found.values() for value in values)


def test_only_what_is_asked_for_comes_back() -> None:
    sample = Sample(Prompt("", metadata=RED_LEFT_OF_BLUE.as_metadata()), RIGHT, RIGHT_PICTURE)
    assert ScenesJudge().score([sample, sample], ["pi"]) == {"pi": [1.0, 1.0]}
    assert ScenesJudge().score([], ["pi"]) == {"pi": []}


@pytest.mark.parametrize(
    ("text", "look"),
    [
        ("a red circle", Look("circle", "red", "plain")),
        ("A Striped RED circle", Look("circle", "red", "striped")),
        ("red crosses", Look("cross", "red", "plain")),
        ("a cross", Look("cross", None, "plain")),
        ("a plain blue square", Look("square", "blue", "plain")),
        ("a red and blue circle", Look("circle", None, "plain")),  # twice is unknown
        ("a red circle square", Look(None, "red", "plain")),
        ("", Look(None, None, "plain")),
    ],
)
def test_look_of(text: str, look: Look) -> None:
    assert look_of(text) == look


def test_painted_truth_is_right() -> None:
    samples = [sample for _, sample in painted_truth(2000)]
    found = ScenesJudge().score(samples, NAMES)
    assert sum(found["correct"]) / len(samples) >= 0.995
    for name in ("sem", "spa", "plan_right", "pi"):
        assert min(found[name]) == 1, name
    # Chains say boxes in thousandths: a side is off by at most 0.024 pixels, which of 12 pixels costs an IoU of 0.008.
    assert min(found["ri"]) > 0.992


def mixed_samples() -> list[Sample]:
    made = [phrase("validation", 0, i) for i in range(40)]
    answers = [sample for _, sample in painted_truth(40)]
    shuffled = [answers[(7 * i) % 40] for i in range(40)]  # mostly the answers to other prompts
    return [Sample(as_prompt(m, ""), a.chain, a.image if i % 5 else None) for i, (m, a) in enumerate(zip(made, shuffled, strict=True))]


def test_order_and_batch_do_not_matter_and_nothing_is_changed() -> None:
    samples = mixed_samples()
    before = [(copy.deepcopy(s.prompt), s.chain.raw, s.image and s.image.tobytes()) for s in samples]
    judge = ScenesJudge()
    whole = judge.score(samples, NAMES)
    alone = [judge.score([sample], NAMES) for sample in reversed(samples)][::-1]
    backwards = judge.score(samples[::-1], NAMES[::-1])
    for name in NAMES:
        values = [repr(value) for value in whole[name]]  # repr: NaN equals itself
        assert values == [repr(one[name][0]) for one in alone]
        assert values == [repr(value) for value in backwards[name]][::-1]
        assert len(set(values)) > 2 or name in ("plan_right", "correct", "spa")
    assert before == [(s.prompt, s.chain.raw, s.image and s.image.tobytes()) for s in samples]


def pieces() -> st.SearchStrategy[str]:
    words = st.sampled_from(["a red circle", "a striped blue square", "two crosses", "red red", "of", "", " "])
    number = st.integers(-5, 1005)
    box = st.tuples(number, number, number, number).map(lambda b: f"{BOX_START}({b[0]},{b[1]}),({b[2]},{b[3]}){BOX_END}")
    good = st.tuples(words, st.integers(0, 800), st.integers(0, 800)).map(
        lambda t: f"{OBJ_START}{t[0] or 'x'}{OBJ_END}{BOX_START}({t[1]},{t[2]}),({t[1] + 150},{t[2] + 150}){BOX_END}"
    )
    part = st.one_of(words, box, good, good, good, st.text(max_size=8), st.sampled_from([OBJ_START, OBJ_END, BOX_START, BOX_END]))
    return st.one_of(st.lists(part, max_size=40).map("".join), st.lists(good, max_size=40).map("".join), st.text())


@settings(max_examples=200, deadline=1000)
@given(text=pieces(), index=st.integers(0, 100), seed=st.integers(0, 50))
def test_any_text_is_scored(text: str, index: int, seed: int) -> None:
    sample = Sample(as_prompt(phrase("validation", 0, index), ""), parse(text), paint(random_scene(str(seed))))
    for values in ScenesJudge().score([sample], NAMES).values():
        assert 0 <= values[0] <= 1


def some(rng: random.Random, count: int) -> SceneLayout:
    corners = [(rng.randrange(9) / 12, rng.randrange(9) / 12, rng.choice((3, 5)) / 12) for _ in range(count)]
    return SceneLayout(tuple(random_look(rng) for _ in corners), tuple((x, y, x + side, y + side) for x, y, side in corners))


def every_way(rows: int, columns: int) -> list[tuple[int | None, ...]]:
    slots: list[int | None] = [*range(columns), *[None] * max(0, rows - columns)]
    return list(permutations(slots, rows))


def total(row_of: Sequence[Sequence[float]], given: Sequence[int | None]) -> float:
    return sum(row[k] for row, k in zip(row_of, given, strict=True) if k is not None)


def test_matching_is_exact() -> None:
    rng = random.Random(0)
    for index in range(300):
        wish, found, other = phrase("validation", 0, index).wish, some(rng, rng.randint(1, 5)), some(rng, rng.randint(1, 5))
        count = max(len(wish.things), len(found.looks))
        agreement = [[want.agreement(look) for look in found.looks] for want in wish.things]
        ways = every_way(len(wish.things), len(found.looks))
        best = max((round(total(agreement, given) / count, 9), kept_relations(wish, given, found.boxes)) for given in ways)
        assert match(wish, found) == pytest.approx(best)
        overlap = [
            [iou(box, at) * look.admits(is_) for at, is_ in zip(other.boxes, other.looks, strict=True)]
            for box, look in zip(found.boxes, found.looks, strict=True)
        ]
        best = max(total(overlap, given) for given in every_way(len(found.boxes), len(other.boxes)))
        assert plan_picture_iou(found, other) == pytest.approx(best / len(found.boxes))
        alone = [all(iou(a, b) == 0 for b in (*found.boxes[:i], *found.boxes[i + 1 :])) for i, a in enumerate(found.boxes)]
        assert separate_share(found) == pytest.approx(sum(alone) / len(alone))


@pytest.mark.parametrize("count", [8, 40])
def test_many_regions_are_scored_in_bounded_time(count: int) -> None:
    rng = random.Random(0)
    regions: list[str | Region] = [
        Region("a red circle", (x, y, x + 100, y + 100)) for x, y in (rng.choices(range(800), k=2) for _ in range(count))
    ]
    plan, image = Chain.of(regions), paint(random_scene("many"))
    assert len(plan_layout(plan).boxes) == count
    for index in range(6):
        sample = Sample(as_prompt(phrase("validation", 0, index), ""), plan, image)
        seconds = []
        for _ in range(5):
            begun = time.perf_counter()
            ScenesJudge().score([sample], NAMES)
            seconds.append(time.perf_counter() - begun)
        # About 2 ms; trying every matching of eight things alone took 30, and of nine would take ten times that.
        assert min(seconds) < 0.02


def test_a_reversed_relation_cannot_be_bought_with_wrong_looks() -> None:
    made = next(m for m in (phrase("train", 0, i) for i in range(5, 600, 6)) if not m.hard)
    assert made.category == "complex"
    ((name, i, j),) = made.wish.relations
    turned = replace(made.wish, relations=((OPPOSITE[name], i, j),))
    chain = describe_scene(paint_wish(turned, random.Random(0)), "There is ")
    scores = ScenesJudge().score([Sample(as_prompt(made, ""), chain, None)], ["sem", "spa"])
    assert (scores["sem"], scores["spa"]) == ([1.0], [0.0])


def test_without_a_known_plan_there_is_no_comparison_with_it() -> None:
    """A picture from elsewhere has no ``ri``. One whose policy wrote an empty chain has 0."""
    prompt, image = Prompt("", metadata=RED_LEFT_OF_BLUE.as_metadata()), picture((RED, (0, 0)), (BLUE, (2, 0)))
    unknown, empty = (Sample(prompt, parse(""), image, plan_known=known) for known in (False, True))
    found = ScenesJudge().score([unknown, empty], ["ri", "pi"])
    assert math.isnan(found["ri"][0])
    assert (found["ri"][1], found["pi"]) == (0.0, [1.0, 1.0])


def test_it_says_what_it_found_and_why_there_is_no_score() -> None:
    things = (Thing(Look("circle", "red", "plain"), (0, 0, 16, 16)), Thing(Look("cross", "cyan", "striped"), (16, 16, 32, 32)))
    known = Sample(Prompt("a red circle"), chain(("red circle", (0, 0))), paint(things))
    samples = [known, replace(known, prompt=Prompt("a dream")), replace(known, image=None), replace(known, chain=parse("<|obj_start|>"))]
    scores, words = ScenesJudge().score_with_words(samples, ["sem", "pi"])
    assert scores["pi"][0] == ScenesJudge().score([known], ["pi"])["pi"][0]
    found, unknown, unseen, _ = words["pi"]
    assert found.reason == "found a plain red circle and a striped cyan cross"
    assert {phrase: [tuple(round(edge * 48) for edge in box) for box in boxes] for phrase, boxes in found.boxes.items()} == {
        "plain red circle": [(0, 0, 16, 16)],
        "striped cyan cross": [(16, 16, 32, 32)],
    }
    assert unknown == words["sem"][1] == Words(problem="the prompt is not understood")
    assert unseen == Words(problem="there is no picture")
    assert [each.reason for each in words["sem"]] == ["", "", "", "the plan is malformed"]
