"""The judge as gotr1 gets it: by its name, through the entry point."""

import math

import pytest
from PIL import Image

from gotr1_core import Prompt, RewardJudge, Sample, UsageError, component, parse


def score(*pictures: Image.Image | None, **options: object) -> list[float]:
    samples = [Sample(Prompt("a picture"), parse("a picture"), picture) for picture in pictures]
    return list(component("judge", "colorfulness", **options).score(samples, ["colorful"])["colorful"])


def test_grey_has_no_colour_and_no_picture_no_score() -> None:
    grey, missing = score(Image.new("RGB", (4, 4), "grey"), None)
    assert grey == 0
    assert math.isnan(missing)


@pytest.mark.parametrize("options", [{"full": 0}, {"ful": 50}])
def test_wrong_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        component("judge", "colorfulness", **options)


def halves(left: str, right: str) -> Image.Image:
    picture = Image.new("RGB", (8, 4), left)
    picture.paste(right, (4, 0, 8, 4))
    return picture


def test_the_formula() -> None:
    # All red: rg = 255, yb = 127.5, no deviation. Red and blue: rg is 255 or 0, yb 127.5 or -255.
    red = 0.3 * math.hypot(255, 127.5)
    both = math.hypot(127.5, 191.25) + 0.3 * math.hypot(127.5, -63.75)
    assert score(Image.new("RGB", (4, 4), "red"), halves("red", "blue"), full=1000) == pytest.approx([red / 1000, both / 1000])


def test_shades_of_grey_have_none_either() -> None:
    assert score(Image.new("L", (5, 3), 90), halves("black", "white")) == [0, 0]


def test_full_is_where_it_saturates() -> None:
    assert score(halves("red", "blue")) == [1]
    assert score(Image.new("RGB", (4, 4), "red"), full=109) == score(Image.new("RGB", (4, 4), "red"))
    assert score(Image.new("RGB", (4, 4), "red"), full=218)[0] == pytest.approx(score(Image.new("RGB", (4, 4), "red"))[0] / 2)


def test_it_is_a_judge() -> None:
    judge = component("judge", "colorfulness")
    assert isinstance(judge, RewardJudge)
    assert judge.rewards == {"colorful": "image"}
