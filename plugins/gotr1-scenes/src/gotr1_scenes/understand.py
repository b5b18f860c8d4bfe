"""Reads the wish of a prompt's text: the inverse of ``language.py``, made from its tables.

Nothing is guessed. A text that is not one of those phrasings, or of the other spellings below, is not understood. Examples: a noun or
an adjective of another world, an extra word, "a red blue circle", "two circle", "circles" (how many?), "a circle and a square in red" (is
the circle red?), more things than a scene has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from itertools import product

from gotr1_scenes.language import (
    COUNTS,
    GROUPS,
    IN,
    INVERTED_RELATIONS,
    LATE,
    LEADS,
    PLAIN_RELATIONS,
    RESPECTIVELY,
    SIDES,
    STRIPES,
    THIRD,
    TOGETHER,
    WORDS,
    noun,
)
from gotr1_scenes.wish import Wish
from gotr1_scenes.world import COLORS, MAX_THINGS, RELATIONS, SHAPES, TEXTURES, Look

NAMED = {noun(look): look for look in (Look(*parts) for parts in product(SHAPES, (None, *COLORS), (None, *TEXTURES)))}
RELATION_OF = {words[name]: name for words in (WORDS, SIDES) for name in RELATIONS}


def _either(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


# Other spellings of the same phrasings. They are replaced in this order in lower-case text with single spaces. T2I-CompBench scores "on
# the top of" as above and "on the bottom of" as below. "Over" may mean covering and "next to" any side, so both are left out.
SPELLINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r" ?\.$", ""),
    (r" ?, ?", ", "),
    (r"\ban\b", "a"),
    (rf"\b({_either(COLORS)}) ({_either(TEXTURES)})\b", r"\2 \1"),
    (r"\b(?:(?:to|on) the )?(left|right) of\b", lambda match: WORDS[match[1]]),
    (r"\b(?:to|on) its (left|right)\b", lambda match: SIDES[match[1]]),
    (r"\bon (?:the )?top of\b", WORDS["above"]),
    (r"\b(?:on (?:the )?bottom of|under|underneath|beneath)\b", WORDS["below"]),
)


def canonical_spelling(text: str) -> str:
    """Returns the text with the spellings of ``language.py``."""
    text = " ".join(text.lower().split())
    for pattern, spelling in SPELLINGS:
        text = re.sub(pattern, spelling, text)
    return text


@lru_cache(maxsize=4096)
def read_wish(text: str) -> Wish | None:
    """Returns the wish of a prompt's text, things in the order of the text. None if any word is not understood."""
    text = canonical_spelling(text)
    for lead in LEADS:
        text = text.removeprefix(lead)
    wish = _listing(text) or _sentence(text)
    return wish if wish and len(wish.things) <= MAX_THINGS else None


def _listing(text: str) -> Wish | None:
    """Reads "x", "x and y", "x, y and z". If one thing's colour or texture follows its noun, the others' must, too."""
    parts = re.split(", and |, | and ", text)
    for table in _listing_tables():
        if all(part in table for part in parts):
            return Wish(tuple(look for part in parts for look in table[part]))
    return None


@cache
def _listing_tables() -> tuple[Mapping[str, tuple[Look, ...]], ...]:
    """Returns the looks of each part of a listing, in three tables: all attributes before the noun, colour after it, texture after it."""
    early: dict[str, tuple[Look, ...]] = {text: (look,) for text, look in NAMED.items()}
    for look, count in product(NAMED.values(), COUNTS):
        for number in (COUNTS[count], GROUPS[count], str(count)):
            early[f"{number} {noun(look, article=False, plural=count > 1)}"] = (look,) * count
    late = []
    for attribute, phrasings in (("color", IN), ("texture", STRIPES)):
        late.append(
            {
                LATE.format(a=text, x=words): tuple(replace(look, **{attribute: value}) for look in looks)
                for text, looks in early.items()
                for value, words in phrasings.items()
                if getattr(looks[0], attribute) is None
            }
        )
    return early, *late


def _sentence(text: str) -> Wish | None:
    """Reads a phrasing that is not a listing."""
    for pattern in _sentence_patterns():
        if match := pattern.fullmatch(text):
            return _wish_of_match(match)
    return None


@cache
def _sentence_patterns() -> tuple[re.Pattern[str], ...]:
    """Returns patterns of the phrasings. Their groups are: things a, b and c, later attributes x and y, relations ``of`` or ``its``."""
    pairs = (*PLAIN_RELATIONS, *INVERTED_RELATIONS)
    templates = (*TOGETHER.values(), *pairs, *(THIRD.format(pair=pair, c="{c}") for pair in pairs))
    patterns = [_pattern(t, a=NAMED, b=NAMED, c=NAMED, of=WORDS.values(), its=SIDES.values()) for t in templates]
    for attribute, values in (("color", COLORS), ("texture", TEXTURES)):
        bare = [text for text, look in NAMED.items() if getattr(look, attribute) is None]
        patterns.append(_pattern(RESPECTIVELY, a=bare, b=bare, x=values, y=values))
    return tuple(patterns)


def _pattern(template: str, **words: Iterable[str]) -> re.Pattern[str]:
    return re.compile(template.format(**{name: f"(?P<{name}>{_either(allowed)})" for name, allowed in words.items()}))


def _wish_of_match(match: re.Match[str]) -> Wish:
    """Returns the wish in the groups of a matched phrasing."""
    groups = match.groupdict()
    order = sorted(groups.keys() & set("abc"), key=match.start)
    looks = {name: NAMED[groups[name]] for name in order}
    for name, late in (("a", "x"), ("b", "y")):
        if late in groups:
            looks[name] = replace(looks[name], **{"color" if groups[late] in COLORS else "texture": groups[late]})
    things = tuple(looks[name] for name in order)
    word = groups.get("of") or groups.get("its")
    return Wish(things, ((RELATION_OF[word], order.index("a"), order.index("b")),) if word else ())
