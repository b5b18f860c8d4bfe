"""What teaches the small judge on the way and is not shipped: small classifiers of its states, each with what they are to tell.

The answers alone teach it nothing for thousands of steps. Between a picture and a score lie steps that have answers of their own: what is
in each part of the picture, which of a prompt's words are true of it, and which of its things.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gotr1_scenes.world import CANVAS, COLORS, GRID, RELATIONS, SHAPES, TEXTURES, Look
from gotr1_scenes_recipe.questions import EMPTY, PARTS, TaughtPicture, TaughtQuestion

PLACE = (CANVAS // GRID + 1,) * 4  # values of a box's ends on the grid
MATCHES = 7  # of a look: shares of one, two and three attributes are sixths
HEADS = {"cells": (EMPTY + 1, *PLACE), "there": (2,), "parts": PARTS, "where": PLACE, "bound": (MATCHES,), "related": (PARTS[-1],)}
ORDINALS = {"first": 0, "second": 1}
LATE = ("in", "with", "without", *ORDINALS)
"""Words after which an attribute belongs to a thing that was named before: to the last one, or to that of this number."""
WordTarget = tuple[int, str, tuple[int, ...]]
"""A token's place in a question, the head that is asked there, and what it is to tell."""


class Heads(torch.nn.Module):
    """Linear classifiers.

    ``cells``, of each token of a picture: what it is part of, and that thing's box. Of words of a question: ``there``, whether a colour, a
    shape or stripes are there at all; ``bound``, how nearly a thing is there with all that was said of it; ``related``, whether it stands
    so, and ``placed``, where it is. Before the answer: ``where`` a phrase is, and the ``parts`` of a score.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        norm, linear = torch.nn.LayerNorm, torch.nn.Linear
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Sequential(norm(hidden), linear(hidden, sum(sizes))) for name, sizes in HEADS.items()}
        )

    def losses(self, name: str, hidden: Tensor, wanted: Sequence[tuple[int, ...]]) -> Tensor:
        """The cross-entropies ``[N, P]`` of N states ``[N, D]``."""
        target = torch.tensor(wanted).view(len(wanted), len(HEADS[name]))
        told = self.heads[name](hidden).split(HEADS[name], -1)
        return torch.stack([F.cross_entropy(part, target[:, k], reduction="none") for k, part in enumerate(told)], 1)

    def of_pictures(self, features: Tensor, shown: Sequence[TaughtPicture]) -> dict[str, Tensor]:
        """A mean over tokens of ``features [B, T, D]``; boxes count where there is a thing."""
        known = torch.tensor([cell is not None for one in shown for cell in one.cells])
        wanted = [cell for one in shown for cell in one.cells if cell is not None]
        losses = self.losses("cells", features.flatten(0, 1)[known], wanted)
        there = torch.tensor([cell[0] != EMPTY for cell in wanted])
        return {"cells": losses[:, 0].mean() + losses[there, 1:].mean()}

    def of_answers(self, hidden: Tensor, asked: Sequence[TaughtQuestion]) -> dict[str, Tensor]:
        """Means over the questions that have such parts, ``hidden [A, D]`` before their answers."""
        wanted = {"parts": [one.parts for one in asked], "where": [one.where for one in asked]}
        rows = {name: [k for k, told in enumerate(every) if told] for name, every in wanted.items()}
        return {name: self.losses(name, hidden[some], [wanted[name][k] for k in some]).mean() for name, some in rows.items() if some}

    def of_words(self, hidden: Tensor, marks: Sequence[WordTarget]) -> dict[str, Tensor]:
        """Means over words, ``hidden [M, D]`` of the marks."""
        rows = {name: [k for k, (_, head, _) in enumerate(marks) if head == name] for name in ("there", "bound", "related", "placed")}
        heads = {"placed": "where"}  # the same question, asked of a thing that a prompt names
        return {n: self.losses(heads.get(n, n), hidden[some], [marks[k][2] for k in some]).mean() for n, some in rows.items() if some}


def word_targets(tokenizer: Any, rows: Sequence[Tensor], asked: Sequence[TaughtQuestion]) -> list[list[WordTarget]]:
    """The marks of each question whose answer is a score."""
    words = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
    return [list(_marks([words[token] for token in row.tolist()], one)) if one.parts else [] for row, one in zip(rows, asked, strict=True)]


def _marks(words: Sequence[str], one: TaughtQuestion) -> Iterator[WordTarget]:
    there = {value for look in one.there for value in (look.shape, look.color, look.texture)}
    planning = one.reward == "spa"  # a canvas shows a plan's things in its order
    said: list[Look] = []  # the things named, as far as they have been told
    waiting, about, side = Look(None), 0, False
    for at, word in enumerate(words):
        value = attribute(word)
        if value is not None:
            yield at, "there", (int(value in there),)
        told = _told(words[at - 1], word)
        if value in SHAPES:
            said.append(replace(waiting, shape=value))
            about, waiting = len(said) - 1, Look(None)
            yield from _thing(at, said[about], one, about if planning else None)
        elif told and words[at - 1] in LATE and about < len(said):
            said[about] = replace(said[about], **told)
            yield from _thing(at, said[about], one)
        else:
            waiting = replace(waiting, **told)
        about, side = ORDINALS.get(word, about), side or word in RELATIONS
        if side and len(said) == 2 and one.parts[-1] and (word in RELATIONS or value in SHAPES):  # the relation is said in full
            yield at, "related", (one.parts[-1],)
            side = False
        if word == ".":  # ends a plan; what comes then is the prompt
            said, waiting, planning = [], Look(None), False


def _told(before: str, word: str) -> dict[str, str]:
    """What a word says of a thing but for its shape."""
    texture = {"with stripes": "striped", "without stripes": "plain"}.get(f"{before} {word}", word)
    return {"color": word} if word in COLORS else {"texture": texture} if texture in TEXTURES else {}


def _thing(at: int, look: Look, one: TaughtQuestion, number: int | None = None) -> Iterator[WordTarget]:
    """How nearly it is there, and where, if it is: the thing of this number, or the first."""
    yield at, "bound", (closest(look, one.there),)
    places = [place for other, place in zip(one.there, one.places, strict=False) if look.admits(other)]  # a plan has none
    if number is not None and number < len(one.places):
        yield at, "placed", one.places[number]
    elif places:
        yield at, "placed", places[0]


def closest(look: Look, there: Sequence[Look]) -> int:
    """How nearly a look is among others, in sixths; 0 where there is none."""
    return max((round((MATCHES - 1) * look.agreement(other)) for other in there), default=0)


def attribute(word: str) -> str | None:
    """The colour, shape or texture that a word says, such as cross for crosses; "plain" is often left unsaid, and is none."""
    singular = word.removesuffix("es") if word == "crosses" else word.removesuffix("s") if word != "cross" else word
    return word if word in COLORS or word == "striped" else singular if singular in SHAPES else None
