"""Chains: what the parser reads and refuses, and how they are drawn."""

from __future__ import annotations

import string
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageChops

from gotr1_core.chain import BOX_END, BOX_START, MAX_PROBLEMS, OBJ_END, OBJ_START, SCALE, Chain, Mention, Part, Region, iou, parse
from gotr1_core.errors import Gotr1Error
from gotr1_core.pictures.draw_chain import PALETTE, draw_chain

TAGS = (OBJ_START, OBJ_END, BOX_START, BOX_END)
WHITE = (255, 255, 255)


def obj(phrase: str) -> str:
    return f"{OBJ_START}{phrase}{OBJ_END}"


def box(text: str) -> str:
    return f"{BOX_START}{text}{BOX_END}"


GOOD = "(10,20),(300,999)"


def tagless(text: str) -> bool:
    return not any(tag in text for tag in TAGS)


prose = st.text(min_size=1).filter(tagless)
phrases = st.text(min_size=1).filter(lambda text: tagless(text) and bool(text.strip()))
spans = st.lists(st.integers(0, SCALE), min_size=2, max_size=2, unique=True).map(sorted)
boxes = st.tuples(spans, spans).map(lambda xy: (xy[0][0], xy[1][0], xy[0][1], xy[1][1]))
gaps = st.text(alphabet=" \t\n\u3000", max_size=3)
regions = st.builds(Region, phrases, boxes, gaps)
soup = st.lists(
    st.sampled_from([*TAGS, GOOD, "(5,5),(1,1)", "(1,1),", "dog", " ", "\n", "(9999,0),(1,1)", "<|obj_", "|>", "é犬"])
    | st.text(max_size=3),
    max_size=40,
).map("".join)


@st.composite
def valid_parts(draw_: st.DrawFn) -> tuple[Part, ...]:
    """Parts as `parse` returns them: two pieces of prose are never neighbours."""
    parts: list[Part] = []
    for part in draw_(st.lists(prose | st.builds(Mention, phrases) | regions, max_size=8)):
        if not (parts and isinstance(part, str) and isinstance(parts[-1], str)):
            parts.append(part)
    return tuple(parts)


def rebuilt(chain: Chain) -> str:
    """The text of a chain, from its parts alone. It equals the text that was parsed if parsing loses nothing."""
    return "".join(part if isinstance(part, str) else part.text for part in chain.parts)


def check_invariants(text: str) -> None:
    chain = parse(text)
    assert chain.raw == text
    assert rebuilt(chain) == text
    assert len(chain.problems) == len(set(chain.problems)) <= MAX_PROBLEMS
    assert chain.well_formed is (not chain.problems)
    assert "" not in chain.parts
    for region in chain.regions:
        x1, y1, x2, y2 = region.box
        assert 0 <= x1 < x2 <= SCALE and 0 <= y1 < y2 <= SCALE
        assert region.phrase.strip() and not region.gap.strip()
    plain = chain.without_boxes()
    assert plain == " ".join(plain.split())
    if chain.well_formed:
        assert all(tagless(part) for part in chain.parts if isinstance(part, str))


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read(text: str) -> None:
    check_invariants(text)


@settings(deadline=None)
@given(soup)
def test_tag_soup_is_read(text: str) -> None:
    check_invariants(text)


@settings(deadline=None)
@given(valid_parts())
def test_round_trip_of_well_formed_chains(parts: tuple[Part, ...]) -> None:
    chain = Chain.of(parts)
    assert chain.well_formed, chain.problems
    assert chain.parts == parts
    assert parse(rebuilt(chain)) == chain
    assert chain.regions == tuple(part for part in parts if isinstance(part, Region))
    assert chain.phrases == tuple(part.phrase for part in parts if not isinstance(part, str))


def test_the_example_of_the_method() -> None:
    text = (
        f"A photo of {obj('a red dog')} {box('(0,100),(499,999)')} left of {obj('a cat')}{box('(500,0),(999,9)')}. {obj('a cat')} sleeps."
    )
    chain = parse(text)
    assert chain.well_formed
    assert chain.parts == (
        "A photo of ",
        Region("a red dog", (0, 100, 499, 999), " "),
        " left of ",
        Region("a cat", (500, 0, 999, 9)),
        ". ",
        Mention("a cat"),
        " sleeps.",
    )
    assert chain.phrases == ("a red dog", "a cat", "a cat")
    assert chain.without_boxes() == "A photo of a red dog left of a cat. a cat sleeps."


def test_prose_without_tags_is_well_formed() -> None:
    assert parse("just a dog").well_formed and parse("").well_formed
    assert parse("").parts == ()


# Each malformedness: the text, a word of its problem, and the phrases of the regions that survive.
MALFORMED = {
    "object not closed": (f"{OBJ_START}dog", f"{OBJ_START} without {OBJ_END}", []),
    "object closed by a box's tag": (f"{OBJ_START}dog{BOX_END}", f"{OBJ_START} without {OBJ_END}", []),
    "box not closed": (f"{obj('dog')}{BOX_START}{GOOD}", f"{BOX_START} without {BOX_END}", []),
    "object's end without start": (f"dog{OBJ_END}", f"{OBJ_END} without {OBJ_START}", []),
    "box's end without start": (f"{obj('dog')}{GOOD}{BOX_END}", f"{BOX_END} without {BOX_START}", []),
    "nested object": (f"{OBJ_START}a {obj('dog')}{box(GOOD)}", "nested tag", ["dog"]),
    "box inside object": (f"{OBJ_START}dog{box(GOOD)}{OBJ_END}", "nested tag", []),
    "object inside box": (f"{obj('dog')}{BOX_START}{obj('cat')}{BOX_END}", "nested tag", []),
    "coordinate too large": (f"{obj('dog')}{box('(0,0),(1000,5)')}", "out of range", []),
    "coordinate absurdly long": (f"{obj('dog')}{box('(0,0),(' + '1' * 9000 + ',5)')}", "out of range", []),
    "reversed in x": (f"{obj('dog')}{box('(9,0),(5,5)')}", "reversed or empty", []),
    "reversed in y": (f"{obj('dog')}{box('(0,9),(5,5)')}", "reversed or empty", []),
    "empty in x": (f"{obj('dog')}{box('(5,0),(5,5)')}", "reversed or empty", []),
    "empty in y": (f"{obj('dog')}{box('(0,5),(5,5)')}", "reversed or empty", []),
    "box without a phrase": (box(GOOD), "without a phrase", []),
    "prose between phrase and box": (f"{obj('dog')} at {box(GOOD)}", "without a phrase", []),
    "second box": (f"{obj('dog')}{box(GOOD)}{box(GOOD)}", "without a phrase", ["dog"]),
    "empty phrase": (f"{obj('')}{box(GOOD)}", "empty phrase", []),
    "blank phrase": (f"{obj(' ')} runs", "empty phrase", []),
    "space in box": (f"{obj('dog')}{box('(1,2), (3,4)')}", "not written as", []),
    "newline after box": (f"{obj('dog')}{box(GOOD + chr(10))}", "not written as", []),
    "signed": (f"{obj('dog')}{box('(-1,2),(3,4)')}", "not written as", []),
    "plus sign": (f"{obj('dog')}{box('(+1,2),(3,4)')}", "not written as", []),
    "leading zero": (f"{obj('dog')}{box('(01,2),(3,4)')}", "not written as", []),
    "fraction": (f"{obj('dog')}{box('(0.1,2),(3,4)')}", "not written as", []),
    "Arabic digits": (f"{obj('dog')}{box('(١,2),(3,4)')}", "not written as", []),
    "one point": (f"{obj('dog')}{box('(1,2)')}", "not written as", []),
    "empty box": (f"{obj('dog')}{box('')}", "not written as", []),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str) -> None:
    text, word, survivors = MALFORMED[case]
    healthy = f"{obj('tree')} {box('(1,1),(2,2)')} and "
    for prefix, before in (("", []), (healthy, ["tree"])):
        chain = parse(prefix + text)
        assert not chain.well_formed
        assert any(word in problem for problem in chain.problems), chain.problems
        assert all(len(problem) < 120 for problem in chain.problems)
        assert [region.phrase for region in chain.regions] == before + survivors
        check_invariants(prefix + text)


def test_a_bad_box_is_one_problem_and_leaves_the_phrase() -> None:
    chain = parse(f"{obj('dog')} {box('(9,9),(1,1)')} and {obj('cat')}{box(GOOD)}")
    assert len(chain.problems) == 1
    assert chain.parts[0] == Mention("dog")
    assert chain.phrases == ("dog", "cat")
    assert [region.phrase for region in chain.regions] == ["cat"]


def test_problems_are_bounded_and_not_repeated() -> None:
    assert len(parse(box("(9,9),(1,1)") * 50).problems) == 2
    assert len(parse("".join(box(f"({i},9),(1,1)") for i in range(50))).problems) == MAX_PROBLEMS


def test_an_impossible_part_is_a_problem_of_the_chain() -> None:
    chain = Chain.of([Region("dog", (5, 5, 1, 1))])
    assert not chain.well_formed and chain.regions == ()
    assert chain == parse(chain.raw)
    assert Chain.of(["a ", "", "dog"]).parts == ("a dog",)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (f"a  {obj(' dog ')} {box(GOOD)}\nruns", "a dog runs"),
        (f"{obj('dog')}{box(GOOD)}runs", "dog runs"),
        (f"{obj('dog')}{box(GOOD)}, {obj('cat')}s", "dog, cats"),
        (f"{obj('dog')}{box(GOOD)}{obj('cat')}", "dog cat"),
        (f"{obj('dog')} {box('(9,9),(1,1)')} runs", "dog runs"),
        (f"{obj('dog')} {BOX_START}(12,4", "dog"),
        (f"{OBJ_START}dog {OBJ_START} cat", "dog cat"),
    ],
)
def test_without_boxes(text: str, plain: str) -> None:
    assert parse(text).without_boxes() == plain


@pytest.mark.parametrize(
    "piece",
    [
        *TAGS,
        "(1,1),",
        obj("a"),
        obj("a") + box(GOOD),
        obj("a") + box("(2,2),(1,1)"),
        box(""),
        obj("a") + " " * 9 + BOX_START,
        "<|obj",
        "1",
        " ",
    ],
)
def test_time_is_linear(piece: str) -> None:
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            parse(text).without_boxes()
            times.append(time.perf_counter() - start)
        return min(times)

    # 8 times the text: a linear reader takes about 8 times as long, a quadratic one 64 times.
    assert seconds(800_000) < 28 * seconds(100_000) + 0.02


@settings(deadline=None)
@given(boxes, boxes)
def test_iou_counts_cells(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> None:
    def length(low: int, high: int, low2: int, high2: int) -> int:
        return len(range(max(low, low2), min(high, high2)))

    both = length(a[0], a[2], b[0], b[2]) * length(a[1], a[3], b[1], b[3])
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    assert iou(a, b) == pytest.approx(both / union)
    assert iou(a, b) == iou(b, a)
    assert iou(a, a) == 1.0


def test_iou_of_degenerate_boxes_is_zero() -> None:
    assert iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0.0
    assert iou((9, 9, 1, 1), (0, 0, 10, 10)) == 0.0
    assert iou((9, 9, 1, 1), (9, 9, 1, 1)) == 0.0


def one(box_: tuple[int, int, int, int], phrase: str = "dog") -> Chain:
    return Chain.of([Region(phrase, box_)])


def test_draw_outlines_each_region_in_its_own_colour() -> None:
    chain = Chain.of([Region("dog", (100, 100, 400, 400)), Region("cat", (500, 500, 999, 999))])
    canvas = draw_chain(chain, (1000, 1000))
    assert canvas.mode == "RGB" and canvas.size == (1000, 1000)
    for x, y, index in [(250, 400, 0), (400, 250, 0), (100, 390, 0), (999, 750, 1), (750, 999, 1), (500, 990, 1)]:
        assert canvas.getpixel((x, y)) == PALETTE[index], (x, y)
    assert canvas.getpixel((250, 250)) == WHITE  # inside the box, beside the label
    assert canvas.getpixel((50, 50)) == canvas.getpixel((450, 450)) == WHITE


def test_draw_labels_the_top_left_corner() -> None:
    canvas = draw_chain(one((250, 250, 900, 900), "a dog"))
    x = y = round(250 * 447 / SCALE)
    label = canvas.crop((x, y, x + 40, y + 14))
    colours = {colour: count for count, colour in label.getcolors(maxcolors=10_000) or []}
    assert colours[PALETTE[0]] > 200  # filled
    assert colours.get(WHITE, 0) > 5  # and written on in white
    assert draw_chain(one((250, 250, 900, 900), "a cat")).tobytes() != canvas.tobytes()


def test_labels_stay_inside_the_canvas() -> None:
    # The label is at home in a corner where nothing of it would fit.
    canvas = draw_chain(one((990, 990, 999, 999), "elephant"))
    box_of_ink = ImageChops.difference(canvas, Image.new("RGB", canvas.size, WHITE)).getbbox()
    assert box_of_ink is not None
    assert box_of_ink[2:] == canvas.size
    free = draw_chain(one((0, 0, 9, 9), "elephant"))
    ink = ImageChops.difference(free, Image.new("RGB", free.size, WHITE)).getbbox()
    assert ink is not None
    assert (box_of_ink[2] - box_of_ink[0], box_of_ink[3] - box_of_ink[1]) == (ink[2], ink[3])  # moved, not cut


def test_a_long_phrase_is_cut_to_the_canvas() -> None:
    canvas = draw_chain(one((500, 500, 999, 999), "a very long phrase " * 6000))
    row = round(500 * 447 / SCALE) + 1  # the label's padding, above the letters
    filled = [x for x in range(448) if canvas.getpixel((x, row)) == PALETTE[0]]
    assert filled == list(range(filled[0], 448)) and filled[0] < 16  # all of it inside, and hardly narrower than the canvas


def test_labels_of_boxes_that_share_a_corner_do_not_cover_each_other() -> None:
    a, b = Region("dog", (100, 100, 600, 600)), Region("cat", (100, 100, 700, 700))
    together = draw_chain(Chain.of([a, b]))
    alone = draw_chain(Chain.of([a]))
    x = y = round(100 * 447 / SCALE)
    area = (x, y, x + 25, y + 15)
    assert together.crop(area).tobytes() == alone.crop(area).tobytes()
    below = together.crop((x + 4, y + 20, x + 24, y + 30)).getcolors(maxcolors=10_000) or []
    assert PALETTE[1] in [colour for _, colour in below]


def test_draw_keeps_the_background() -> None:
    image = Image.new("RGB", (2, 2))
    pixels = [(10, 0, 0), (0, 20, 0), (0, 0, 30), (40, 40, 0)]
    for index, colour in enumerate(pixels):
        image.putpixel((index % 2, index // 2), colour)
    before = image.tobytes()
    canvas = draw_chain(Chain.of([]), (64, 64), image)
    # Enlarged by a whole number: hard edges, no new colours.
    assert sorted(canvas.getcolors() or []) == sorted((32 * 32, colour) for colour in pixels)
    smooth = draw_chain(Chain.of([]), (63, 63), image)
    assert smooth.size == (63, 63) and len(smooth.getcolors(maxcolors=10_000) or []) > 4
    boxed = draw_chain(one((500, 500, 999, 999)), (64, 64), image)
    assert boxed.getpixel((5, 5)) == pixels[0]
    assert image.tobytes() == before
    same = draw_chain(one((500, 500, 999, 999)), (2, 2), image)
    assert same is not image and image.tobytes() == before


def test_draw_takes_any_mode_of_image() -> None:
    for mode in ("L", "RGBA", "P", "1"):
        assert draw_chain(one((0, 0, 99, 99)), (32, 32), Image.new(mode, (8, 8))).mode == "RGB"


def test_draw_without_regions_is_blank() -> None:
    for text in ("", "a dog", obj("dog"), OBJ_START):
        assert draw_chain(parse(text), (20, 10)).getcolors() == [(200, WHITE)]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (8, 8), (448, 448)])
@pytest.mark.parametrize("box_", [(0, 0, 1, 1), (998, 998, 999, 999), (500, 0, 501, 999), (0, 0, 999, 999)])
def test_draw_any_size_and_box(size: tuple[int, int], box_: tuple[int, int, int, int]) -> None:
    canvas = draw_chain(one(box_), size)
    assert canvas.size == size
    assert canvas.getcolors(maxcolors=10**6) != [(size[0] * size[1], WHITE)]


@pytest.mark.parametrize(
    "phrase", ["犬", "🐕‍🦺", "\ud800", "a\nb\tc", "\u202eabc", "e\u0301", "\x00\x01", "\u200b", string.printable, "ﷺ" * 50]
)
def test_draw_phrases_the_font_lacks(phrase: str) -> None:
    assert draw_chain(one((100, 100, 900, 900), phrase), (64, 64)).size == (64, 64)


@settings(deadline=None)
@given(phrases)
def test_draw_any_phrase(phrase: str) -> None:
    draw_chain(one((100, 100, 900, 900), phrase), (48, 48))


def test_a_tall_heap_of_labels_is_drawn() -> None:
    draw_chain(Chain.of([Region(f"dog {index}", (0, 0, 999, 999)) for index in range(100)]))


def test_draw_refuses_an_empty_canvas() -> None:
    with pytest.raises(Gotr1Error, match="0x5") as caught:
        draw_chain(Chain.of([]), (0, 5))
    assert caught.value.code == 2 and caught.value.hint


def test_importing_is_cheap() -> None:
    code = "import sys, gotr1_core.chain; print(sorted({'PIL', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
