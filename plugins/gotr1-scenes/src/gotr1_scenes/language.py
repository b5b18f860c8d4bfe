"""Makes English prompts for wishes, in T2I-CompBench's categories, and holds some of them out of training.

Each category has plain phrasings and *hard* ones: inverted relations, colours or stripes named after the shapes, "a trio of". The
supervised data annotates hard phrasings wrong more often than right, see ``annotate.py``.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace

from gotr1_scenes.wish import Wish
from gotr1_scenes.world import COLORS, RELATIONS, SHAPES, Look

CATEGORIES = ("color", "shape", "texture", "spatial", "numeracy", "complex")
HARD_SHARE = 0.5
VALIDATION_SHARE = 4  # one text in so many belongs to validation
HELD_OUT_PAIRS = frozenset((color, shape) for c, color in enumerate(COLORS) for s, shape in enumerate(SHAPES) if (c + s) % 3 == 0)

# Phrasings. ``understand.py`` reads them back. x and y are attributes that follow their thing, or follow both things.
LEADS = ("", "a picture of ")
LATE = "{a} {x}"
RESPECTIVELY = "{a} and {b}, the first {x} and the second {y}"
IN = {color: f"in {color}" for color in COLORS}
STRIPES = {"striped": "with stripes", "plain": "without stripes"}
TOGETHER = {"together": "{a} together with {b}", "beside": "beside {a} {b}"}
THIRD = "{pair}, and {c}"

# Phrasings of a relation, with the words for left, right, above and below. Inverted phrasings name B first.
WORDS = dict(zip(RELATIONS, ("to the left of", "to the right of", "above", "below"), strict=True))
SIDES = dict(zip(RELATIONS, ("on its left", "on its right", "above it", "below it"), strict=True))
PLAIN_RELATIONS = ("{a} {of} {b}", "{a} placed {of} {b}", "{a} is {of} {b}")
INVERTED_RELATIONS = ("{b} with {a} {its}", "{of} {b} there is {a}", "{b} and {its} {a}")
HELD_OUT_PHRASINGS = frozenset(
    (phrasing, relation)
    for p, phrasing in enumerate(PLAIN_RELATIONS + INVERTED_RELATIONS)
    for r, relation in enumerate(RELATIONS)
    if (p + r) % 3 == 0
)

COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}
GROUPS = {1: "a single", 2: "a pair of", 3: "a trio of", 4: "a quartet of"}


@dataclass(frozen=True)
class Phrase:
    """A generated prompt: text, wish, category, whether its phrasing is hard, the phrasing, and whether it is held out of training."""

    text: str
    wish: Wish
    category: str
    hard: bool
    phrasing: str
    held_out: bool = False


def noun(look: Look, *, article: bool = True, plural: bool = False) -> str:
    """Returns a noun phrase for a look: "a striped red circle"."""
    words = [w for w in (look.texture, look.color, look.shape) if w]
    text = " ".join(words)
    if plural:
        text += "es" if text.endswith("s") else "s"
    return f"a {text}" if article else text


def listing(parts: list[str]) -> str:
    """Joins parts: "x", "x and y", "x, y and z"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _different(rng: random.Random, count: int, pool: tuple[str, ...]) -> list[str]:
    return rng.sample(pool, count)


def _color(rng: random.Random, hard: bool) -> Phrase:
    if hard:
        shapes, colors = _different(rng, 2, SHAPES), _different(rng, 2, tuple(COLORS))
        looks = tuple(Look(s, c) for s, c in zip(shapes, colors, strict=True))
        phrasing = rng.choice(("in", "first"))
        bare = [noun(Look(shape)) for shape in shapes]
        text = listing([LATE.format(a=a, x=IN[color]) for a, color in zip(bare, colors, strict=True)])
        if phrasing == "first":
            text = RESPECTIVELY.format(a=bare[0], b=bare[1], x=colors[0], y=colors[1])
        return Phrase(text, Wish(looks), "color", True, phrasing)
    count = rng.choice((1, 2, 2, 3))
    looks = tuple(Look(s, c) for s, c in zip(_different(rng, count, SHAPES), _different(rng, count, tuple(COLORS)), strict=True))
    lead = rng.choice(LEADS)
    return Phrase(lead + listing([noun(look) for look in looks]), Wish(looks), "color", False, "and")


def _shape(rng: random.Random, hard: bool) -> Phrase:
    if hard:
        a, b = (Look(s) for s in _different(rng, 2, SHAPES))
        phrasing = rng.choice(tuple(TOGETHER))
        return Phrase(TOGETHER[phrasing].format(a=noun(a), b=noun(b)), Wish((a, b)), "shape", True, phrasing)
    looks = tuple(Look(s) for s in _different(rng, rng.choice((2, 2, 3)), SHAPES))
    lead = rng.choice(LEADS)
    return Phrase(lead + listing([noun(look) for look in looks]), Wish(looks), "shape", False, "and")


def _texture(rng: random.Random, hard: bool) -> Phrase:
    shapes = _different(rng, 2, SHAPES)
    colors = [rng.choice((None, *COLORS)) for _ in shapes]
    textures = rng.choice((("striped", "plain"), ("plain", "striped")))
    a, b = (Look(s, c, t) for s, c, t in zip(shapes, colors, textures, strict=True))
    if not hard:
        return Phrase(listing([noun(a), noun(b)]), Wish((a, b)), "texture", False, "and")
    bare = [noun(replace(look, texture=None)) for look in (a, b)]
    phrasing = rng.choice(("with", "former"))
    text = listing([LATE.format(a=a, x=STRIPES[texture]) for a, texture in zip(bare, textures, strict=True)])
    if phrasing == "former":
        text = RESPECTIVELY.format(a=bare[0], b=bare[1], x=textures[0], y=textures[1])
    return Phrase(text, Wish((a, b)), "texture", True, phrasing)


def _related(rng: random.Random, hard: bool, looks: tuple[Look, Look]) -> tuple[str, Wish, str, bool]:
    """Returns text, wish and phrasing of one relation between two things a and b, and whether it is held out of training.

    An inverted phrasing names b first.
    """
    relation = rng.choice(RELATIONS)
    phrasing = rng.choice(INVERTED_RELATIONS if hard else PLAIN_RELATIONS)
    a, b = looks
    text = phrasing.format(a=noun(a), b=noun(b), of=WORDS[relation], its=SIDES[relation])
    wish = Wish((b, a), ((relation, 1, 0),)) if hard else Wish((a, b), ((relation, 0, 1),))
    return text, wish, phrasing, (phrasing, relation) in HELD_OUT_PHRASINGS


def _pair(rng: random.Random, colored: bool) -> tuple[Look, Look]:
    shapes = _different(rng, 2, SHAPES)
    colors: list[str | None] = [*_different(rng, 2, tuple(COLORS))] if colored else [None, None]
    return Look(shapes[0], colors[0]), Look(shapes[1], colors[1])


def _spatial(rng: random.Random, hard: bool) -> Phrase:
    text, wish, phrasing, held = _related(rng, hard, _pair(rng, rng.random() < 2 / 3))
    return Phrase(text, wish, "spatial", hard, phrasing, held)


def _numeracy(rng: random.Random, hard: bool) -> Phrase:
    count = rng.choice((1, 2, 2, 3, 3, 4))
    look = Look(rng.choice(SHAPES), rng.choice((None, *COLORS)))
    things = [look] * count
    text = f"{(GROUPS if hard else COUNTS)[count]} {noun(look, article=False, plural=count > 1)}"
    if count < 4 and rng.random() < 0.4:
        other = Look(rng.choice([s for s in SHAPES if s != look.shape]))
        more = rng.randint(1, 4 - count)
        text += f" and {COUNTS[more]} {noun(other, article=False, plural=more > 1)}"
        things += [other] * more
    return Phrase(text, Wish(tuple(things)), "numeracy", hard, "group" if hard else "count")


def _complex(rng: random.Random, hard: bool) -> Phrase:
    shapes = _different(rng, 3, SHAPES)
    colors = _different(rng, 3, tuple(COLORS))
    textures = [rng.choice((None, None, "striped", "plain")) for _ in shapes]
    looks = [Look(s, c, t) for s, c, t in zip(shapes, colors, textures, strict=True)]
    text, wish, phrasing, held = _related(rng, hard, (looks[0], looks[1]))
    text = THIRD.format(pair=text, c=noun(looks[2]))
    return Phrase(text, Wish((*wish.things, looks[2]), wish.relations), "complex", hard, phrasing, held)


_MAKERS = {"color": _color, "shape": _shape, "texture": _texture, "spatial": _spatial, "numeracy": _numeracy, "complex": _complex}


def phrase(split: str, seed: int, index: int, hard_share: float = HARD_SHARE) -> Phrase:
    """Returns prompt number ``index`` of a split. It depends on the arguments alone.

    The splits share no text: a checksum of the text decides. Training has no held-out colour-shape pair and no held-out phrasing of a
    relation.
    """
    rng = random.Random(f"{split}/{seed}/{index}")
    category = CATEGORIES[index % len(CATEGORIES)]
    while True:
        made = _MAKERS[category](rng, rng.random() < hard_share)
        made = replace(made, held_out=made.held_out or has_held_out_pair(made.wish))
        if split == "train" and not (is_validation_text(made.text) or made.held_out):
            return made
        if split != "train" and is_validation_text(made.text):
            return made


def is_validation_text(text: str) -> bool:
    """Returns true if a text belongs to validation and not to training. Its checksum decides."""
    return zlib.crc32(text.encode()) % VALIDATION_SHARE == 0


def has_held_out_pair(wish: Wish) -> bool:
    """Returns true if the wish has a colour-shape pair that is held out of training."""
    return bool({(look.color, look.shape) for look in wish.things} & HELD_OUT_PAIRS)
