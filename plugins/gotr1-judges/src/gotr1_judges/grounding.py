"""Measures how well a picture follows its plan: IoU of planned and detected boxes, matched one to one (R_RI, arXiv 2505.17022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.optimize import linear_sum_assignment

from gotr1_core.chain import SCALE, Chain, Region, iou
from gotr1_judges.answers import Box


def canonical_phrase(phrase: str) -> str:
    """Returns a phrase in lower case with single spaces. In this form phrases are asked for and compared."""
    return " ".join(phrase.split()).lower()


def phrases(chain: Chain) -> list[str]:
    """Returns the different phrases of a chain's regions, in order."""
    return list(dict.fromkeys(canonical_phrase(region.phrase) for region in chain.regions))


def as_fractions(boxes: Sequence[Box], extent: tuple[float, float]) -> list[Box]:
    """Converts boxes to fractions of the picture, in [0,1], and cuts them at its edges. Boxes without area are dropped.

    Args:
        boxes: (x1, y1, x2, y2) in any unit.
        extent: width and height of the picture in that unit.
    """
    width, height = extent
    cut = [(_clamp(x1 / width), _clamp(y1 / height), _clamp(x2 / width), _clamp(y2 / height)) for x1, y1, x2, y2 in boxes]
    return [box for box in cut if box[0] < box[2] and box[1] < box[3]]


def answered_fractions(boxes: Sequence[Box], extent: tuple[float, float]) -> list[Box]:
    """Converts boxes that a language model wrote to fractions of the picture, as `as_fractions` does.

    A box whose corners are all at most 1 is in fractions already: no model names a thing that is smaller than the unit of its boxes.

    Args:
        boxes: (x1, y1, x2, y2) in the unit of the model's boxes, or in fractions.
        extent: width and height of the picture in that unit.
    """
    return [fractions for box in boxes for fractions in as_fractions([box], (1.0, 1.0) if max(box) <= 1 else extent)]


def _clamp(fraction: float) -> float:
    return min(1.0, max(0.0, fraction))


def planned_iou(chain: Chain, detected: Mapping[str, Sequence[Box]]) -> float:
    """Returns the mean IoU of a chain's regions with the detected boxes of their phrases, in [0,1]. A region without a box counts 0.

    Regions of one phrase are matched one to one with its boxes so that the sum of the IoUs is largest. So one dog in the picture does not
    stand for two planned ones. A chain without regions has 0.

    Args:
        chain: the plan.
        detected: boxes in fractions of the picture, by phrase (`canonical_phrase`). Every phrase of the chain is a key.
    """
    by_phrase: dict[str, list[Region]] = {}
    for region in chain.regions:
        by_phrase.setdefault(canonical_phrase(region.phrase), []).append(region)
    total = sum(_largest_iou_sum(regions, detected[phrase]) for phrase, regions in by_phrase.items() if detected[phrase])
    return total / len(chain.regions) if chain.regions else 0.0


def _largest_iou_sum(regions: Sequence[Region], boxes: Sequence[Box]) -> float:
    table = [[iou([corner / SCALE for corner in region.box], box) for box in boxes] for region in regions]
    rows, columns = linear_sum_assignment(table, maximize=True)
    return sum(table[row][column] for row, column in zip(rows, columns, strict=True))
