"""Prompts: what the splits share, what is held out, the categories and the phrasings."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from gotr1_scenes.language import (
    CATEGORIES,
    HELD_OUT_PAIRS,
    HELD_OUT_PHRASINGS,
    INVERTED_RELATIONS,
    PLAIN_RELATIONS,
    SIDES,
    WORDS,
    Phrase,
    phrase,
)
from gotr1_scenes.wish import Wish
from gotr1_scenes.world import COLORS, MAX_THINGS, RELATIONS, SHAPES

PAIRS = set(product(COLORS, SHAPES))
TRAIN = [phrase("train", 0, i) for i in range(6000)]
VALIDATION = [phrase("validation", 0, i) for i in range(3000)]


def pairs(made: Phrase) -> set[tuple[str | None, str | None]]:
    return {(look.color, look.shape) for look in made.wish.things}


def phrasings(made: Phrase) -> set[tuple[str, str]]:
    return {(made.phrasing, name) for name, _, _ in made.wish.relations}


def words(prompts: list[Phrase]) -> set[str]:
    return {word for made in prompts for word in made.text.replace(",", " ").split()}


def test_a_prompt_depends_on_split_seed_and_number_alone() -> None:
    assert [phrase("validation", 0, i) for i in reversed(range(50))][::-1] == VALIDATION[:50]
    assert [phrase("validation", 1, i).text for i in range(50)] != [made.text for made in VALIDATION[:50]]


def test_splits_share_no_text_whatever_their_seed_and_size() -> None:
    other = {phrase("train", 7, i).text for i in range(3000)} | {made.text for made in TRAIN}
    assert not other & {made.text for made in VALIDATION}


def test_a_third_of_pairs_and_of_phrasings_is_held_out() -> None:
    assert 3 * len(HELD_OUT_PAIRS) == len(PAIRS) == 24
    every = {(phrasing, relation) for phrasing in PLAIN_RELATIONS + INVERTED_RELATIONS for relation in RELATIONS}
    assert every >= HELD_OUT_PHRASINGS
    assert 3 * len(HELD_OUT_PHRASINGS) == len(every) == 24


def test_training_shows_everything_but_what_is_held_out() -> None:
    assert {pair for made in TRAIN for pair in pairs(made) if None not in pair} == PAIRS - HELD_OUT_PAIRS
    every = {(phrasing, relation) for phrasing in PLAIN_RELATIONS + INVERTED_RELATIONS for relation in RELATIONS}
    assert {used for made in TRAIN for used in phrasings(made)} == every - HELD_OUT_PHRASINGS
    assert not any(made.held_out for made in TRAIN)


def test_validation_shows_what_is_held_out_and_says_so() -> None:
    assert {pair for made in VALIDATION for pair in pairs(made)} >= set(PAIRS)
    assert {used for made in VALIDATION for used in phrasings(made)} >= HELD_OUT_PHRASINGS
    for made in VALIDATION:
        assert made.held_out == bool(pairs(made) & HELD_OUT_PAIRS or phrasings(made) & HELD_OUT_PHRASINGS), made.text


def test_every_word_of_validation_occurs_in_training() -> None:
    assert words(VALIDATION) <= words(TRAIN)


def test_categories_come_in_turn_with_hard_and_plain_phrasings() -> None:
    assert [made.category for made in VALIDATION[:12]] == [*CATEGORIES, *CATEGORIES]
    kinds = Counter((made.category, made.hard) for made in TRAIN)
    # 1,000 prompts a category, half of them hard before held-out texts are dropped: 100 away from 500 is 6 deviations.
    assert all(400 <= kinds[category, hard] <= 600 for category in CATEGORIES for hard in (False, True)), kinds


@pytest.mark.parametrize("relation", RELATIONS)
def test_inverted_phrasings_name_the_other_thing_first(relation: str) -> None:
    inverted = [made for made in VALIDATION if made.phrasing in INVERTED_RELATIONS and made.wish.relations[0][0] == relation]
    assert inverted
    for made in inverted:
        assert made.wish.relations == ((relation, 1, 0),)
        assert made.hard
        assert SIDES[relation] in made.text or made.text.startswith(WORDS[relation])
    straight = [made for made in VALIDATION if made.phrasing in PLAIN_RELATIONS and made.wish.relations[0][0] == relation]
    assert straight
    assert all(made.wish.relations == ((relation, 0, 1),) and WORDS[relation] in made.text for made in straight)


def test_things_are_wished_in_the_order_they_are_named() -> None:
    for made in VALIDATION:
        shapes = [word.removesuffix("es") if word == "crosses" else word for word in made.text.replace(",", " ").split()]
        found = [shape for word in shapes for shape in ("circle", "square", "triangle", "cross") if word in (shape, shape + "s")]
        assert list(dict.fromkeys(look.shape for look in made.wish.things)) == found, made.text
        assert 1 <= len(made.wish.things) <= MAX_THINGS


@pytest.mark.parametrize(
    ("words_for", "count"),
    [({"a single", "one"}, 1), ({"two", "a pair of"}, 2), ({"three", "a trio of"}, 3), ({"four", "a quartet of"}, 4)],
)
def test_counts_mean_what_they_say(words_for: set[str], count: int) -> None:
    single = [made for made in VALIDATION + TRAIN if made.category == "numeracy" and " and " not in made.text]
    said = [made for made in single if any(made.text.startswith(word + " ") for word in words_for)]
    assert {word for word in words_for for made in said if made.text.startswith(word)} == words_for
    assert all(len(made.wish.things) == count and len(set(made.wish.things)) == 1 for made in said)


def test_a_wish_survives_json() -> None:
    for made in VALIDATION[:60]:
        assert Wish.from_metadata(made.wish.as_metadata()) == made.wish
