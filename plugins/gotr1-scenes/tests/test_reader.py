"""Reading pictures: painted scenes exactly, also with noise and in other sizes, and nothing in an empty picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from gotr1_scenes.measure import EXTRA, MISSING, UNSURE, VALUES, confusion, noisy
from gotr1_scenes.painter import BACKGROUND, paint
from gotr1_scenes.reader import read_things
from gotr1_scenes.world import CANVAS, Look, Thing
from gotr1_scenes_recipe.pictures import random_scene

SCENES = [random_scene(f"reader/{i}") for i in range(300)]


def test_painted_scenes_are_read_exactly() -> None:
    for scene in SCENES:
        assert read_things(paint(scene)) == sorted(scene, key=lambda thing: thing.box)


def test_the_confusion_table_of_painted_scenes_is_diagonal() -> None:
    tables = confusion((scene, paint(scene)) for scene in SCENES)
    things = sum(len(scene) for scene in SCENES)
    for attribute, counts in tables.items():
        assert all(was == found for was, found in counts), counts
        assert {was for was, _ in counts} == set(VALUES[attribute])
        assert counts.total() == things


def test_the_confusion_table_shows_mistakes() -> None:
    red, blue = Look("circle", "red", "plain"), Look("circle", "blue", "striped")
    left, right = (0, 0, 12, 12), (32, 32, 44, 44)
    pairs = [
        ((Thing(red, left),), paint((Thing(blue, left),))),  # another look in the same place
        ((Thing(red, left),), paint(())),
        ((Thing(red, left),), paint((Thing(red, left), Thing(blue, right)))),
    ]
    tables = confusion(pairs)
    assert tables["color"] == {("red", "blue"): 1, ("red", MISSING): 1, ("red", "red"): 1, (EXTRA, "blue"): 1}
    assert tables["texture"]["plain", "striped"] == 1
    blob = Image.new("RGB", (CANVAS, CANVAS), BACKGROUND)
    blob.paste((225, 45, 45), (0, 0, 12, 12))
    blob.paste(BACKGROUND, (0, 0, 9, 9))  # an L: no shape of this world
    assert read_things(blob)[0].look.shape is None
    assert confusion([((Thing(red, left),), blob)])["shape"] == {("circle", UNSURE): 1}


def test_noise_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    for scene in SCENES:
        assert read_things(noisy(paint(scene), 12, rng)) == sorted(scene, key=lambda thing: thing.box)


def test_smoothing_does_not_matter() -> None:
    for scene in SCENES:
        blurred = paint(scene).filter(ImageFilter.GaussianBlur(0.5))
        assert [thing.look for thing in read_things(blurred)] == [thing.look for thing in sorted(scene, key=lambda thing: thing.box)]


@pytest.mark.parametrize("filter", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
def test_larger_pictures_are_read_the_same(filter: Image.Resampling) -> None:
    for scene in SCENES[:150]:
        twice = paint(scene).resize((2 * CANVAS, 2 * CANVAS), filter)
        assert read_things(twice) == [
            Thing(thing.look, tuple(2 * v for v in thing.box))  # type: ignore[arg-type]
            for thing in sorted(scene, key=lambda thing: thing.box)
        ]


def test_other_modes_and_odd_sizes() -> None:
    picture = paint(SCENES[0])
    assert read_things(picture.convert("RGBA")) == read_things(picture)
    assert read_things(Image.new("RGB", (1, 1), BACKGROUND)) == []
    assert read_things(Image.new("RGB", (5, 90), BACKGROUND)) == []


def test_nothing_is_found_on_an_empty_canvas_and_specks_are_not_things() -> None:
    empty = paint(())
    assert read_things(empty) == []
    for x in range(0, CANVAS, 6):
        empty.putpixel((x, 20), (225, 45, 45))
    assert read_things(empty) == []


def test_a_thing_of_two_colours_has_none() -> None:
    picture = Image.new("RGB", (CANVAS, CANVAS), BACKGROUND)
    picture.paste((225, 45, 45), (8, 8, 14, 20))
    picture.paste((45, 90, 230), (14, 8, 20, 20))
    assert read_things(picture) == [Thing(Look("square", None, "plain"), (8, 8, 20, 20))]


def test_garbage_is_read_without_raising() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        read_things(Image.fromarray(rng.integers(0, 256, (CANVAS, CANVAS, 3), dtype=np.uint8)))
