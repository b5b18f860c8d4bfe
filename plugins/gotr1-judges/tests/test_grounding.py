"""Planned boxes compared with found ones."""

from __future__ import annotations

import pytest

from gotr1_core.chain import Chain, Region
from gotr1_judges.grounding import answered_fractions, as_fractions, phrases, planned_iou

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
MIDDLE = (0.25, 0.0, 0.75, 1.0)  # IoU 1/3 with either


def plan(*things: tuple[str, tuple[int, int, int, int]]) -> Chain:
    return Chain.of([Region(*thing) for thing in things])


left, right = (0, 0, 500, 999), (500, 0, 999, 999)
TOLERANCE = 2e-3  # 500 of 999 is not quite a half


def test_a_region_alone() -> None:
    chain = plan(("a dog", left))
    assert planned_iou(chain, {"a dog": [LEFT]}) == pytest.approx(1, abs=TOLERANCE)
    assert planned_iou(chain, {"a dog": [RIGHT]}) == pytest.approx(0, abs=TOLERANCE)
    assert planned_iou(chain, {"a dog": [RIGHT, MIDDLE]}) == pytest.approx(1 / 3, abs=TOLERANCE)  # the best of several candidates
    assert planned_iou(chain, {"a dog": []}) == 0  # missing


def test_a_missing_object_counts() -> None:
    chain = plan(("a dog", left), ("a cat", right))
    assert planned_iou(chain, {"a dog": [LEFT], "a cat": []}) == pytest.approx(1 / 2, abs=TOLERANCE)


def test_regions_of_one_phrase_are_matched_one_to_one() -> None:
    chain = plan(("a dog", left), ("A  dog", right))
    assert phrases(chain) == ["a dog"]
    assert planned_iou(chain, {"a dog": [RIGHT, LEFT]}) == pytest.approx(1, abs=TOLERANCE)
    assert planned_iou(chain, {"a dog": [LEFT]}) == pytest.approx(1 / 2, abs=TOLERANCE)  # one dog does not stand for two
    assert planned_iou(chain, {"a dog": [MIDDLE]}) == pytest.approx(1 / 6, abs=TOLERANCE)
    # Greedily, the first region would take the middle one and leave nothing for the second.
    assert planned_iou(plan(("x", left), ("x", (250, 0, 749, 999))), {"x": [MIDDLE, LEFT]}) == pytest.approx(1, abs=TOLERANCE)


def test_a_plan_without_regions_scores_0() -> None:
    assert planned_iou(plan(), {}) == 0


def test_fractions() -> None:
    assert as_fractions([(10, 20, 30, 40)], (100, 200)) == [(0.1, 0.1, 0.3, 0.2)]
    assert as_fractions([(-10, 0, 50, 1200)], (100, 1000)) == [(0, 0, 0.5, 1)]  # cut at the edges
    assert as_fractions([(200, 0, 300, 10)], (100, 100)) == []  # beside the picture


def test_an_answered_box_in_fractions_counts_fully() -> None:
    boxes = [(0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0), (100.0, 200.0, 300.0, 1400.0), (-2.0, -1.0, -1.0, 0.5)]
    assert answered_fractions(boxes, (1000.0, 1000.0)) == [(0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.3, 1.0)]
    assert planned_iou(plan(("a dog", left)), {"a dog": answered_fractions(boxes[:1], (1000.0, 1000.0))}) == pytest.approx(1, abs=TOLERANCE)
    assert as_fractions(boxes[:1], (1000.0, 1000.0)) == [(0.0, 0.0, 0.0005, 0.001)]  # a detector's boxes are always in pixels
