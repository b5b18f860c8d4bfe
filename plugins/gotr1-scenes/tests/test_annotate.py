"""Supervised data: how often it is wrong, and that picture and chain always agree."""

from __future__ import annotations

from collections import Counter

import pytest

from gotr1_core.chain import SCALE, parse
from gotr1_scenes.annotate import Annotated, annotated
from gotr1_scenes.judge import look_of
from gotr1_scenes.language import CATEGORIES
from gotr1_scenes.measure import noise
from gotr1_scenes.wish import granted_by
from gotr1_scenes.world import CANVAS

EXAMPLES = [annotated("train", 0, i) for i in range(3000)]


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, bool], tuple[int, int]]:
    return noise(18_000)


@pytest.mark.parametrize("category", CATEGORIES)
def test_hard_phrasings_are_wrong_more_often_than_right(category: str, counts: dict[tuple[str, bool], tuple[int, int]]) -> None:
    seen, wrong = counts[category, True]
    # The share aimed at is 0.65. Of 1,300 or more examples its deviation is 0.0133 at most, so the bounds of 60-70 %
    # are nearly four deviations away; a share of a half would be seven outside of them.
    assert seen > 1300
    assert 0.60 <= wrong / seen <= 0.70


@pytest.mark.parametrize("category", CATEGORIES)
def test_plain_phrasings_are_never_wrong(category: str, counts: dict[tuple[str, bool], tuple[int, int]]) -> None:
    seen, wrong = counts[category, False]
    assert seen > 1300
    assert wrong == 0


def test_wrong_scenes_do_not_grant_the_wish_and_right_ones_do() -> None:
    assert 0.25 < sum(e.wrong for e in EXAMPLES) / len(EXAMPLES) < 0.4
    for example in EXAMPLES:
        assert granted_by(example.phrase.wish, example.scene) is not example.wrong, example.phrase.text


def test_every_phrasing_that_is_hard_is_sometimes_right() -> None:
    right = Counter(e.phrase.phrasing for e in EXAMPLES if e.phrase.hard and not e.wrong)
    assert set(right) == {e.phrase.phrasing for e in EXAMPLES if e.phrase.hard}


def test_the_picture_follows_the_chain() -> None:
    for example in EXAMPLES:
        chain = parse(example.chain.raw)
        assert chain.well_formed, chain.problems
        assert chain == example.chain
        boxes = [tuple(round(v * CANVAS / SCALE) for v in region.box) for region in chain.regions]
        assert boxes == [thing.box for thing in example.scene]
        assert [look_of(region.phrase) for region in chain.regions] == [thing.look for thing in example.scene]


def test_clean_examples_are_never_wrong() -> None:
    clean = [annotated("train", 0, i, clean=True) for i in range(1200)]
    assert not any(example.wrong for example in clean)
    assert all(granted_by(example.phrase.wish, example.scene) for example in clean)
    assert [example.phrase for example in clean] == [example.phrase for example in EXAMPLES[:1200]]


def test_an_example_depends_on_its_arguments_alone() -> None:
    assert [annotated("train", 0, i) for i in reversed(range(30))][::-1] == EXAMPLES[:30]
    assert annotated("train", 1, 0) != EXAMPLES[0]


def wrong(category: str) -> list[Annotated]:
    return [e for e in EXAMPLES if e.wrong and e.phrase.category == category]


def test_what_is_mistaken() -> None:
    for example in wrong("spatial") + wrong("complex"):  # looks right, relation reversed
        assert all(want.admits(thing.look) for want, thing in zip(example.phrase.wish.things, example.scene, strict=True))
    for example in wrong("numeracy"):
        assert abs(len(example.scene) - len(example.phrase.wish.things)) == 1
    for example in wrong("color"):
        a, b = example.phrase.wish.things
        assert [(t.look.shape, t.look.color) for t in example.scene] == [(a.shape, b.color), (b.shape, a.color)]
    for example in wrong("texture"):
        a, b = example.phrase.wish.things
        assert [(t.look.shape, t.look.texture) for t in example.scene] == [(a.shape, b.texture), (b.shape, a.texture)]
    for example in wrong("shape"):
        assert example.scene[0].look.shape == example.phrase.wish.things[0].shape
        assert example.scene[1].look.shape not in {look.shape for look in example.phrase.wish.things}
