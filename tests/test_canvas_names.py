"""Names on a canvas: English ones look as ever, and no two plans with other names have the same picture and the same legend."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st
from PIL import Image, ImageDraw, ImageFont

from gotr1_core.chain import SCALE, Chain, Region
from gotr1_core.errors import UsageError
from gotr1_core.pictures.draw_chain import AUTO, NO_FONT, PALETTE, SYSTEM_FONTS, check_font, draw_chain, draw_with_legend

LEFT, RIGHT = (0, 200, 450, 900), (550, 200, 999, 900)
CAT, DOG = "猫", "狗"
NAMES = [
    *("猫", "狗", "ネコ", "が", "고양이", "кошка", "собака", "Γάτα", "قطة", "كلب", "חתול", "बिल्ली", "कुत्ता", "แมว"),
    *("🐈", "🐕", "🐕‍🦺", "❤", "❤\ufe0f", "café", "cafe", "x\u0302", "x", "x\u0323\u0302", "mèo", "meo", "ǎ", "a", "а"),
    *("a cat", "a  cat", "a\u200bcat", "a\u200dcat", "\u202ea cat", "a cat.", "a cat…", "a cat...", "?", "??", "? dog", "犬 dog"),
    *("1", "2", "1 ?", "２", "²", "fi", "ﬁ", "\u3164", "\u2800", "a –", "a —", '1 is "x", 2 is "y', "\ud800", "\\ud800", "\x00", "ﷺ"),
    *("a long name " * 12 + "x", "a long name " * 12 + "y", "猫" * 80 + "狗", "猫" * 80, "a" * 1500 + "b", "a" * 1500 + "c"),
]


def plan(*names: str, boxes: Sequence[tuple[int, int, int, int]] = (LEFT, RIGHT)) -> Chain:
    return Chain.of([Region(name, box) for name, box in zip(names, boxes, strict=False)])


def seen(chain: Chain, font: str = NO_FONT) -> tuple[bytes, dict[int, str]]:
    """What a judge gets to see of a plan."""
    image, legend = draw_with_legend(chain, font=font)
    return image.tobytes(), legend


def words(*names: str) -> list[str]:
    """Names as they count: kinds of white space are the same, and so are compositions of one letter."""
    return [unicodedata.normalize("NFC", " ".join(name.split())) for name in names]


@pytest.mark.parametrize("font", [AUTO, NO_FONT])
@pytest.mark.parametrize("size", [(448, 448), (640, 480)])
def test_english_names_look_as_ever(font: str, size: tuple[int, int]) -> None:
    """Drawn here a second time, with Pillow alone, as before there were legends."""
    names = ["a red cat", 'the "big" dog, 2 m & 50% \u2026 I\u2019m', "3 birds/#1 (old)"]
    boxes = [(0, 0, 400, 300), (100, 400, 999, 600), (300, 700, 800, 999)]
    canvas = Image.new("RGB", size, (255, 255, 255))
    pen, font_size, pad = ImageDraw.Draw(canvas), round(min(size) / 28), round(min(size) / 220)
    letters = ImageFont.load_default(size=font_size)
    _, top, _, bottom = letters.getbbox("Ág|")
    corners = [tuple(round(v * ((size[i % 2]) - 1) / SCALE) for i, v in enumerate(box)) for box in boxes]
    for colour, corner in zip(PALETTE, corners, strict=False):
        pen.rectangle(corner, outline=colour, width=round(min(size) / 150))
    for colour, corner, name in zip(PALETTE, corners, names, strict=False):
        x, y = corner[:2]
        width, height = round(letters.getlength(name) + 0.5) + 2 * pad, round(bottom - top) + 2 * pad
        pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        pen.text((x + pad, y + pad - top), name, fill=(255, 255, 255), font=letters)
    drawn, legend = draw_with_legend(plan(*names, boxes=boxes), size, font=font)
    assert legend == {}
    assert drawn.tobytes() == canvas.tobytes() == draw_chain(plan(*names, boxes=boxes), size).tobytes()


def test_a_mirrored_plan_is_another() -> None:
    """The case of the report: it was ??? at both places."""
    one, names_swapped, boxes_swapped = plan(CAT, DOG), plan(DOG, CAT), plan(CAT, DOG, boxes=(RIGHT, LEFT))
    assert seen(one)[1] == seen(boxes_swapped)[1] == {1: CAT, 2: DOG}
    assert seen(one)[0] != seen(boxes_swapped)[0]
    assert seen(names_swapped)[1] == {1: DOG, 2: CAT}


def test_no_two_names_look_the_same() -> None:
    for font in (AUTO, NO_FONT):
        chains = [plan(name, "a dog") for name in NAMES]
        views = [(picture, tuple(legend.items())) for picture, legend in (seen(chain, font) for chain in chains)]
        assert len(set(views)) == len({tuple(words(name)) for name in NAMES})


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(NAMES), min_size=2, max_size=2), st.lists(st.sampled_from(NAMES), min_size=2, max_size=2))
@example(["猫", "1"], ["1", "猫"])
@example([CAT, CAT], [DOG, DOG])
@example(["猫", "2"], ["2", "2"])
def test_two_plans_look_the_same_only_if_they_are(one: list[str], other: list[str]) -> None:
    assert (seen(plan(*one)) == seen(plan(*other))) == (words(*one) == words(*other))


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=12).filter(str.strip), st.text(max_size=12).filter(str.strip))
def test_any_two_names(one: str, other: str) -> None:
    if words(one) != words(other):
        assert seen(plan(one)) != seen(plan(other))


def test_identical_names_have_their_own_numbers() -> None:
    picture, legend = seen(plan(CAT, CAT))
    assert legend == {1: CAT, 2: CAT}
    assert picture == seen(plan(DOG, DOG))[0]


def test_a_name_that_could_be_a_number_gets_one() -> None:
    assert seen(plan("2 dogs", "a cat"))[1] == {}
    assert seen(plan("2 dogs", CAT))[1] == {1: "2 dogs", 2: CAT}


def test_cut_names_are_listed_and_numbered_only_if_they_look_the_same() -> None:
    long = "a name that is far too long for the canvas and goes on and on, "
    one, both = plan(long + "x"), plan(long + "x", long + "y")
    assert seen(one)[1] == {1: long + "x"}
    assert draw_chain(one).tobytes() == draw_chain(plan(long + "z")).tobytes()  # as ever
    assert seen(both)[1] == {1: long + "x", 2: long + "y"}
    assert seen(both)[0] != seen(plan(long + "x", long + "y", boxes=(RIGHT, LEFT)))[0]


def test_a_covered_name_is_listed() -> None:
    """Both labels belong at the bottom edge, where one has room."""
    low = [(10, 985, 400, 999), (10, 990, 300, 999)]
    assert seen(plan("cat", "bat", boxes=low))[1] == {1: "cat"}


def available() -> list[str]:
    paths = []
    for name in SYSTEM_FONTS:
        try:
            paths.append(str(ImageFont.truetype(name, 16).path))
        except (OSError, ImportError):
            continue
    return paths


def test_a_font_of_the_system_draws_what_it_has() -> None:
    paths = [path for path in available() if "DejaVu" in path]
    if not paths:
        assert seen(plan("кошка"))[1] == {1: "кошка"}
        return
    drawn, legend = seen(plan("кошка"), paths[0])
    assert legend == {1: "кошка"}
    assert drawn != seen(plan("собака"), paths[0])[0] != seen(plan("собака"))[0]
    assert seen(plan(CAT), paths[0]) == seen(plan(CAT))  # it lacks this one: a number alone


def test_a_font_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text.ttf").write_text("no font")
    for path in (tmp_path / "text.ttf", tmp_path / "none.ttf", tmp_path, tmp_path / "DejaVuSans.ttf"):
        with pytest.raises(UsageError, match=r"^judge\.font: the font .* cannot be used") as caught:
            check_font(str(path), 448, "judge.font")
        assert caught.value.hint
    check_font(AUTO, 448, "judge.font")
    check_font(NO_FONT, 448, "judge.font")
