"""The world: where things stand, what "left" means, and which patches pictures are made of."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gotr1_scenes.annotate import annotated
from gotr1_scenes.painter import BACKGROUND, STRIPE, covers, paint, paint_array, patch_numbers, patch_table, patches
from gotr1_scenes.reader import read_things
from gotr1_scenes.wish import Wish, granted
from gotr1_scenes.world import CANVAS, CELL, COLORS, GRID, MAX_THINGS, SIZES, Look, Scene, Thing, clear_of, holds, place_boxes
from gotr1_scenes_recipe.pictures import random_scene

SCENES = [random_scene(f"test/{i}") for i in range(1000)] + [annotated("train", 0, i).scene for i in range(1000)]


def cells(thing: Thing) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = thing.box
    return {(x // CELL, y // CELL) for x in range(x1, x2) for y in range(y1, y2)}


def mask(shape: str, size: int) -> np.ndarray:
    """The pixels ``[size, size]`` that a shape covers in its box."""
    y, x = np.mgrid[:size, :size] + 0.5
    return covers(shape, size, x, y)


def test_things_lie_on_the_grid_inside_the_canvas() -> None:
    for scene in SCENES:
        assert 1 <= len(scene) <= MAX_THINGS
        for x1, y1, x2, y2 in (thing.box for thing in scene):
            assert x2 - x1 == y2 - y1
            assert x2 - x1 in SIZES
            assert all(v % GRID == 0 and 0 <= v <= CANVAS for v in (x1, y1, x2, y2))
    assert {thing.box[2] - thing.box[0] for scene in SCENES for thing in scene} == set(SIZES)


def test_things_keep_their_distance_and_share_no_cell() -> None:
    for scene in SCENES:
        for i, thing in enumerate(scene):
            x1, y1, x2, y2 = thing.box
            for other in scene[:i]:
                assert not cells(thing) & cells(other)
                gaps = (other.box[0] - x2, x1 - other.box[2], other.box[1] - y2, y1 - other.box[3])
                assert max(gaps) >= GRID


@pytest.mark.parametrize(
    ("box", "clear"),
    [
        ((16, 0, 28, 12), True),  # a cell boundary and four pixels between them
        ((12, 0, 24, 12), False),  # touching
        ((12, 12, 24, 24), False),  # corner to corner, in one cell
        ((0, 16, 12, 28), True),
        ((0, 0, 12, 12), False),
    ],
)
def test_clear_of(box: tuple[int, int, int, int], clear: bool) -> None:
    assert clear_of(box, [(0, 0, 12, 12)]) is clear


@pytest.mark.parametrize(
    ("relation", "a", "b", "truth"),
    [
        ("left", (0, 0, 12, 12), (16, 0, 28, 12), True),
        ("left", (16, 0, 28, 12), (0, 0, 12, 12), False),
        ("right", (16, 0, 28, 12), (0, 0, 12, 12), True),
        ("above", (0, 0, 12, 12), (0, 16, 12, 28), True),
        ("below", (0, 16, 12, 28), (0, 0, 12, 12), True),
        ("below", (0, 0, 12, 12), (0, 16, 12, 28), False),
        ("left", (0, 0, 12, 12), (12, 0, 24, 12), True),  # touching is clear
        ("left", (0, 0, 12, 12), (11, 0, 23, 12), False),  # overlapping is not
        ("left", (0, 0, 12, 12), (16, 6, 28, 18), True),  # aligned by half the smaller side
        ("left", (0, 0, 12, 12), (16, 7, 28, 19), False),  # by less
        ("left", (0, 8, 12, 20), (16, 0, 36, 20), True),  # the smaller of two sizes counts
        ("above", (0, 0, 12, 12), (16, 16, 28, 28), False),  # diagonal is neither
        ("left", (0, 0, 12, 12), (16, 16, 28, 28), False),
    ],
)
def test_relations(relation: str, a: tuple[int, ...], b: tuple[int, ...], truth: bool) -> None:
    assert holds(relation, a, b) is truth
    assert holds(relation, [v / 48 for v in a], [v / 48 for v in b]) is truth


def test_place_listens_to_its_condition() -> None:
    for seed in range(20):
        boxes = place_boxes(2, random.Random(seed), lambda boxes: holds("above", boxes[1], boxes[0]))
        assert boxes[1][3] <= boxes[0][1]


def test_looks_admit_and_agree() -> None:
    full = Look("circle", "red", "striped")
    assert Look("circle").admits(full)
    assert not Look("circle", "blue").admits(full)
    assert not full.admits(Look("circle", None, "striped"))  # what cannot be told does not count
    assert Look("circle", "blue", "striped").agreement(full) == pytest.approx(2 / 3)
    assert Look("square", "red").agreement(full) == 0.5
    assert Look("circle").agreement(full) == 1.0
    assert Look(None).agreement(full) == 1.0


def test_painted_pixels() -> None:
    striped: Scene = (Thing(Look("square", "green", "striped"), (8, 16, 20, 28)),)
    picture = paint_array(striped)
    assert tuple(picture[0, 0]) == BACKGROUND
    assert [tuple(int(v) for v in picture[y, 8]) for y in range(16, 20)] == [COLORS["green"]] * 2 + [STRIPE] * 2
    assert (picture != BACKGROUND).any(-1).sum() == 12 * 12
    assert paint(striped).size == (CANVAS, CANVAS)
    assert not mask("triangle", 12)[0, :4].any()
    assert mask("triangle", 12)[-1].all()
    assert mask("cross", 20).sum() == 2 * 4 * 20 - 16


def test_larger_pictures_show_the_same() -> None:
    """Colours are unmixed, things stand where they were to half a pixel of the smaller picture, and the reader knows them."""
    palette = {BACKGROUND, STRIPE, *COLORS.values()}
    for scene in SCENES:
        large = paint(scene, 64)
        assert large.size == (64, 64)
        assert {tuple(map(int, pixel)) for pixel in np.asarray(large).reshape(-1, 3)} <= palette
        seen, painted = read_things(large), sorted(scene, key=lambda thing: thing.box)
        assert [thing.look for thing in seen] == [thing.look for thing in painted]
        for one, other in zip(seen, painted, strict=True):
            assert np.abs(np.array(one.box) * CANVAS / 64 - other.box).max() <= 0.5


def test_patch_table_covers_every_picture() -> None:
    table = patch_table()
    assert sorted(table.values()) == list(range(len(table)))
    back = {number: np.frombuffer(patch, np.uint8).reshape(CELL, CELL, 3) for patch, number in table.items()}
    for scene in SCENES:
        picture = paint_array(scene)
        numbers = patch_numbers(picture)  # KeyError: a patch that is not in the table
        assert len(numbers) == 36
        assert all((back[n] == patch).all() for n, patch in zip(numbers, patches(picture), strict=True))
    assert patch_numbers(paint_array(())) == [0] * 36


def test_random_scenes_repeat() -> None:
    assert random_scene("a") == random_scene("a") != random_scene("b")


def test_granted_needs_everything_and_nothing_more() -> None:
    red, blue = Look("circle", "red", "plain"), Look("square", "blue", "plain")
    wish = Wish((Look("circle", "red"), Look("square", "blue")), (("left", 0, 1),))
    left, right = (0.0, 0.0, 0.2, 0.2), (0.5, 0.0, 0.7, 0.2)
    assert granted(wish, [red, blue], [left, right])
    assert granted(wish, [blue, red], [right, left])  # in any order
    assert not granted(wish, [red, blue], [right, left])
    assert not granted(wish, [red], [left])
    assert not granted(wish, [red, blue, blue], [left, right, (0.5, 0.5, 0.7, 0.7)])
