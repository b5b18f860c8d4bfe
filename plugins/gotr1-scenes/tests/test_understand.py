"""Reading prompts: every phrasing gives its wish back, also with small variations, and nothing else is understood."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.samples import Prompt, Sample
from gotr1_scenes.annotate import Annotated, annotated
from gotr1_scenes.judge import REWARDS, ScenesJudge, prompt_wish
from gotr1_scenes.language import COUNTS, GROUPS, INVERTED_RELATIONS, PLAIN_RELATIONS, SIDES, STRIPES, THIRD, WORDS, Phrase, noun, phrase
from gotr1_scenes.painter import paint
from gotr1_scenes.source import as_prompt
from gotr1_scenes.understand import NAMED, read_wish
from gotr1_scenes.wish import Wish
from gotr1_scenes.world import COLORS, MAX_THINGS, RELATIONS, SHAPES, TEXTURES, Look

SPLITS = ("train", "validation")
RED, BLUE, GREEN = Look("circle", "red"), Look("square", "blue"), Look("triangle", "green")
CIRCLE, SQUARE = Look("circle"), Look("square")
NAMES = list(REWARDS)


@cache
def generated(split: str, count: int = 3000, seed: int = 5) -> list[Phrase]:
    return [phrase(split, seed, i) for i in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_generated_prompts_are_read_as_their_wish(split: str) -> None:
    made = generated(split)
    assert [m.text for m in made if read_wish(m.text) != m.wish] == []
    kinds = {(m.category, m.hard, m.phrasing) for m in made}
    assert len(kinds) == 2 + 1 + 2 + 1 + 2 + 1 + 2 * (3 + 3) + 2  # every phrasing of every category was there


@pytest.mark.parametrize(("phrasing", "relation", "third"), [*product(PLAIN_RELATIONS + INVERTED_RELATIONS, RELATIONS, (False, True))])
def test_every_phrasing_of_every_relation(phrasing: str, relation: str, third: bool) -> None:
    text = phrasing.format(a=noun(RED), b=noun(BLUE), of=WORDS[relation], its=SIDES[relation])
    inverted = phrasing in INVERTED_RELATIONS
    things: tuple[Look, ...] = (BLUE, RED) if inverted else (RED, BLUE)
    relations = ((relation, 1, 0),) if inverted else ((relation, 0, 1),)
    if third:
        text, things = THIRD.format(pair=text, c=noun(GREEN)), (*things, GREEN)
    assert read_wish(text) == Wish(things, relations)


def test_every_noun_and_every_count() -> None:
    assert set(NAMED.values()) == {Look(s, c, t) for s in SHAPES for c in (None, *COLORS) for t in (None, *TEXTURES)}
    for text, look in NAMED.items():
        assert read_wish(text) == Wish((look,))
        for count in range(1, MAX_THINGS + 1):
            for number in (COUNTS[count], GROUPS[count], count):
                said = noun(look, article=False, plural=count > 1)
                assert read_wish(f"{number} {said}") == Wish((look,) * count)
                assert read_wish(f"{number} {noun(look, article=False, plural=count == 1)}") is None  # "two circle", "one circles"


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("A Red CIRCLE", Wish((RED,))),
        ("  a  red\tcircle \n and a blue square . ", Wish((RED, BLUE))),
        ("an red circle", Wish((RED,))),
        ("a red circle , a blue square, and a green triangle.", Wish((RED, BLUE, GREEN))),
        ("a red circle and a blue square and a green triangle", Wish((RED, BLUE, GREEN))),
        ("a red striped circle", Wish((Look("circle", "red", "striped"),))),
        ("3 circles", Wish((CIRCLE,) * 3)),
        ("1 circle and 2 squares", Wish((CIRCLE, SQUARE, SQUARE))),
        ("a circle and 3 squares", Wish((CIRCLE, SQUARE, SQUARE, SQUARE))),
        ("a red circle and a red circle", Wish((RED, RED))),
        ("a circle in red", Wish((RED,))),
        ("two circles in red and a square in blue", Wish((RED, RED, BLUE))),
        ("a red circle with stripes", Wish((replace(RED, texture="striped"),))),
        ("a picture of a red circle above a blue square", Wish((RED, BLUE), (("above", 0, 1),))),
        ("a red circle on top of a blue square", Wish((RED, BLUE), (("above", 0, 1),))),
        ("a red circle is on the top of a blue square", Wish((RED, BLUE), (("above", 0, 1),))),
        ("a red circle on the bottom of a blue square", Wish((RED, BLUE), (("below", 0, 1),))),
        ("a red circle under a blue square", Wish((RED, BLUE), (("below", 0, 1),))),
        ("a red circle underneath a blue square", Wish((RED, BLUE), (("below", 0, 1),))),
        ("a red circle placed beneath a blue square", Wish((RED, BLUE), (("below", 0, 1),))),
        ("a blue square with a red circle to its right", Wish((BLUE, RED), (("right", 1, 0),))),
        ("on top of a blue square there is a red circle", Wish((BLUE, RED), (("above", 1, 0),))),
        *(
            (f"a red circle {of} a blue square", Wish((RED, BLUE), (("left", 0, 1),)))
            for of in ("left of", "on the left of", "to the left of")
        ),
        *((f"{of} a blue square there is a red circle", Wish((BLUE, RED), (("left", 1, 0),))) for of in ("left of", "on the left of")),
    ],
)
def test_small_variations(text: str, wish: Wish) -> None:
    assert read_wish(text) == wish


@pytest.mark.parametrize(
    "text",
    [
        "",
        " . ",
        ",",
        "a dog",
        "a red circle and a dog",
        "a red",
        "circle",  # a listing of bare nouns would be ambiguous: "a red circle and square"
        "circles",
        "a red circle and square",
        "a red circle above",
        "above a red circle",
        "a red circle and some squares",
        "a red blue circle",
        "a red and blue circle",
        "a red circle square",
        "a red red circle",
        "a plain striped circle",
        "a pink circle",
        "a redcircle",
        "a small red circle",
        "the red circle",
        "a circle that is not red",
        "no circle",
        "a red circle without a blue square",
        "0 circles",
        "5 circles",
        "two circles and three squares",  # five things
        "a circle, a circle, a circle, a circle and a circle",
        "two circle",
        "a circles",
        "a circle, , a square",
        "a circle, a square,",
        "a circle or a square",
        "a circle and a square in red",  # is the circle?
        "a circle in red and a square",
        "a circle in red and a square with stripes",
        "a red circle in red",
        "a circle and a square, the first red",
        "a circle and a square, the first red and the second striped",
        "a blue circle and a square, the first red and the second green",
        "a circle, a square and a cross, the first red and the second green",
        "two circles and a square, the first red and the second green",
        "a circle above a square and a cross",  # is the cross below too?
        "a circle above a square above a cross",
        "two circles above a square",
        "a circle next to a square",
        "a circle over a square",
        "a circle left a square",
        "a circle to the left of a square!",
        "a red circle above a blue square..",
        "a red circle above a blue square. a green triangle",
        "a red circle above a blue square, and a green triangle, and a cross",
        "a picture of a picture of a circle",
        "together with a circle a square",
    ],
)
def test_what_is_not_understood_gives_nothing(text: str) -> None:
    assert read_wish(text) is None
    assert read_wish(text + " and a dog") is None


def said_in(text: str) -> tuple[set[str], int]:
    """What the words of a text name: shapes, colours and textures, and the number of things."""
    text = re.sub("|".join(sorted(STRIPES.values(), key=len)[::-1]), lambda m: {v: k for k, v in STRIPES.items()}[m[0]], text)
    singular = [{"crosses": "cross"}.get(word, word.removesuffix("s") if word != "cross" else word) for word in re.findall(r"\w+", text)]
    text = " ".join(singular).replace("a picture of ", "")
    number = 0
    for count in COUNTS:
        text, groups = re.subn(rf"\b({GROUPS[count]}|{COUNTS[count]})\b", "", text)
        number += count * groups
    return set(singular) & {*SHAPES, *COLORS, *TEXTURES}, number + len(re.findall(r"\ba\b", text))


def agrees(text: str, wish: Wish) -> bool:
    values = {value for look in wish.things for value in (look.shape, look.color, look.texture) if value}
    named = any(words in text for words in (*WORDS.values(), *SIDES.values()))
    return said_in(text) == (values, len(wish.things)) and named == bool(wish.relations)


WORDS_SAID = sorted({word for made in generated("train", 600) for word in re.findall(r"\w+|,", made.text)})


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 599), st.data())
def test_a_text_with_a_word_changed_is_understood_wholly_or_not_at_all(index: int, data: st.DataObject) -> None:
    words = re.findall(r"\w+|,", generated("train", 600)[index].text)
    at = data.draw(st.integers(0, len(words) - 1))
    words[at : at + data.draw(st.integers(0, 1))] = data.draw(st.lists(st.sampled_from(WORDS_SAID), max_size=1))
    text = " ".join(words).replace(" ,", ",")
    wish = read_wish(text)
    assert wish is None or agrees(text, wish)


def test_wrong_readings_are_noticed_and_some_changed_texts_are_understood() -> None:
    assert all(agrees(made.text, made.wish) for made in generated("train", 600))
    assert not agrees("a red circle above a blue square", Wish((RED, BLUE)))
    assert not agrees("a red circle and a blue square", Wish((RED, SQUARE)))
    assert not agrees("two red circles", Wish((RED,)))
    rng = random.Random(0)
    texts = [made.text.split() for made in generated("train", 600)]
    shorter = [" ".join(words[:k] + words[k + 1 :]) for words in texts for k in [rng.randrange(len(words))]]
    assert 60 < sum(read_wish(text) is not None for text in shorter) < 540  # an adjective left out is fine, most words are not


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_read_without_raising(text: str) -> None:
    assert read_wish(text) is None


def same(scores: dict[str, list[float]], others: dict[str, list[float]]) -> bool:
    return all(a == b or (math.isnan(a) and math.isnan(b)) for n in NAMES for a, b in zip(scores[n], others[n], strict=True))


@pytest.mark.parametrize("split", SPLITS)
def test_a_wish_read_from_text_scores_like_one_in_metadata(split: str) -> None:
    # Every other answer is that of the prompt six further on, of the same category and mostly wrong; the noise adds its own.
    answers: list[Annotated] = [annotated(split, 5, i + 6 * (i % 2)) for i in range(1500)]
    made = generated(split)[:1500]
    carried = [Sample(as_prompt(m, ""), a.chain, paint(a.scene)) for m, a in zip(made, answers, strict=True)]
    scores = ScenesJudge().score(carried, NAMES)
    assert same(scores, ScenesJudge().score([replace(s, prompt=Prompt(s.prompt.text)) for s in carried], NAMES))
    assert any(m.hard for m in made)
    assert 0.2 < sum(scores["correct"]) / len(made) < 0.8  # right and wrong scenes were among them


def test_metadata_take_precedence_over_the_text() -> None:
    assert prompt_wish(Prompt("a red circle")) == Wish((RED,))
    assert prompt_wish(Prompt("a red circle", metadata={"author": "me"})) == Wish((RED,))
    assert prompt_wish(Prompt("a red circle", metadata=Wish((BLUE,)).as_metadata())) == Wish((BLUE,))
    assert prompt_wish(Prompt("a dog", metadata=Wish((BLUE,)).as_metadata())) == Wish((BLUE,))
    assert prompt_wish(Prompt("a dog")) is None


def test_a_picture_is_scored_by_a_plain_prompt_alone() -> None:
    answer = annotated("train", 0, 3, clean=True)
    picture: Image.Image = paint(answer.scene)
    found = ScenesJudge().score([Sample(Prompt(answer.phrase.text + "."), parse(""), picture)], ["pi", "correct"])
    assert found == {"pi": [1.0], "correct": [1.0]}
    assert all(math.isnan(v[0]) for v in ScenesJudge().score([Sample(Prompt("a dog"), parse(""), picture)], NAMES).values())
