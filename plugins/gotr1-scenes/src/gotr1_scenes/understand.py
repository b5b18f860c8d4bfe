"""Reads a prompt back into the wish it says: the inverse of ``language.py``, made from its tables.

Nothing is guessed. What is not one of its phrasings, but for the spellings below, is not understood: a noun or an adjective
of another world, a word left over, "a red blue circle", "two circle", "circles" (how many?), "a circle and a square in red"
(is the circle?), more things than a scene has.
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


# Other spellings of what the language says, applied in this order to lower-case text with single spaces. T2I-CompBench scores "on
# the top of" as above and "on the bottom of" as below. "Over" could also mean covering, "next to" any side: neither is here.
SPELLINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r" ?\.$", ""),
    (r" ?, ?", ", "),
    (r"\ban\b", "a"),
    (rf"\b({_either(COLORS)}) ({_either(TEXTURES)})\b", r"\2 \1"),
    (r"\b(?:(?:to|on) the )?(left|right) of\b", lambda said: WORDS[said[1]]),
    (r"\b(?:to|on) its (left|right)\b", lambda said: SIDES[said[1]]),
    (r"\bon (?:the )?top of\b", WORDS["above"]),
    (r"\b(?:on (?:the )?bottom of|under|underneath|beneath)\b", WORDS["below"]),
)


def usual(text: str) -> str:
    """The text as the language would spell it."""
    text = " ".join(text.lower().split())
    for pattern, spelling in SPELLINGS:
        text = re.sub(pattern, spelling, text)
    return text


@lru_cache(maxsize=4096)
def wish_of(text: str) -> Wish | None:
    """The wish a prompt says, things in the order it names them; None where it is not understood to the last word."""
    text = usual(text)
    for lead in LEADS:
        text = text.removeprefix(lead)
    wish = _listing(text) or _sentence(text)
    return wish if wish and len(wish.things) <= MAX_THINGS else None


def _listing(text: str) -> Wish | None:
    """ "x", "x and y", "x, y and z"; where one thing's colour or texture is named late, so must be the others'."""
    parts = re.split(", and |, | and ", text)
    for table in _parts():
        if all(part in table for part in parts):
            return Wish(tuple(look for part in parts for look in table[part]))
    return None


@cache
def _parts() -> tuple[Mapping[str, tuple[Look, ...]], ...]:
    """What a listing is made of: counted things as they are, with the colour named late, with the texture named late."""
    early: dict[str, tuple[Look, ...]] = {text: (look,) for text, look in NAMED.items()}
    for look, count in product(NAMED.values(), COUNTS):
        for number in (COUNTS[count], GROUPS[count], str(count)):
            early[f"{number} {noun(look, article=False, plural=count > 1)}"] = (look,) * count
    late = []
    for attribute, sayings in (("color", IN), ("texture", STRIPES)):
        late.append(
            {
                LATE.format(a=text, x=said): tuple(replace(look, **{attribute: value}) for look in looks)
                for text, looks in early.items()
                for value, said in sayings.items()
                if getattr(looks[0], attribute) is None
            }
        )
    return early, *late


def _sentence(text: str) -> Wish | None:
    """A phrasing that says more than a listing does."""
    for pattern in _sentences():
        if found := pattern.fullmatch(text):
            return _said(found)
    return None


@cache
def _sentences() -> tuple[re.Pattern[str], ...]:
    """The phrasings: things are groups a, b and c, their late attributes x and y, and relations ``of`` or ``its``."""
    pairs = (*PLAIN_RELATIONS, *INVERTED_RELATIONS)
    templates = (*TOGETHER.values(), *pairs, *(THIRD.format(pair=pair, c="{c}") for pair in pairs))
    patterns = [_pattern(t, a=NAMED, b=NAMED, c=NAMED, of=WORDS.values(), its=SIDES.values()) for t in templates]
    for attribute, values in (("color", COLORS), ("texture", TEXTURES)):
        bare = [text for text, look in NAMED.items() if getattr(look, attribute) is None]
        patterns.append(_pattern(RESPECTIVELY, a=bare, b=bare, x=values, y=values))
    return tuple(patterns)


def _pattern(template: str, **words: Iterable[str]) -> re.Pattern[str]:
    return re.compile(template.format(**{name: f"(?P<{name}>{_either(said)})" for name, said in words.items()}))


def _said(found: re.Match[str]) -> Wish:
    """The wish in a phrasing's groups."""
    said = found.groupdict()
    order = sorted(said.keys() & set("abc"), key=found.start)
    looks = {name: NAMED[said[name]] for name in order}
    for name, late in (("a", "x"), ("b", "y")):
        if late in said:
            looks[name] = replace(looks[name], **{"color" if said[late] in COLORS else "texture": said[late]})
    things = tuple(looks[name] for name in order)
    word = said.get("of") or said.get("its")
    return Wish(things, ((RELATION_OF[word], order.index("a"), order.index("b")),) if word else ())
