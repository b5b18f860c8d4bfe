"""Auxiliary losses for the small judge: linear classifiers of its hidden states, with their targets. They are not shipped.

From the answers alone the judge learns nothing for thousands of steps. Between a picture and a score lie steps with targets of their own:
what is in each part of the picture, which words of a prompt are true of it, and which of its things are there.
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

PLACE = (CANVAS // GRID + 1,) * 4  # numbers of values of a box's four coordinates on the grid
MATCHES = 7  # values of a look's agreement: shares of one, two or three attributes are sixths
HEADS = {"cells": (EMPTY + 1, *PLACE), "there": (2,), "parts": PARTS, "where": PLACE, "bound": (MATCHES,), "related": (PARTS[-1],)}
ORDINALS = {"first": 0, "second": 1}
LATE = ("in", "with", "without", *ORDINALS)
"""After these words an attribute belongs to a thing that was named before: to the last one, or to the one with this ordinal."""
WordTarget = tuple[int, str, tuple[int, ...]]
"""The position of a token in a question, the head that classifies its state, and the target."""


class Heads(torch.nn.Module):
    """Linear classifiers of hidden states.

    - ``cells``, at each token of a picture: which thing it belongs to, and that thing's box.
    - ``there``, at a word of a question: whether this colour, shape or texture occurs.
    - ``bound``, at a word: how similar the nearest thing is to all that was said of one.
    - ``related``, at a word: whether the relation holds. ``placed``, at a word: the thing's box.
    - ``where`` and ``parts``, before the answer: the box of a phrase, and the parts of a score.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        norm, linear = torch.nn.LayerNorm, torch.nn.Linear
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Sequential(norm(hidden), linear(hidden, sum(sizes))) for name, sizes in HEADS.items()}
        )

    def losses(self, name: str, hidden: Tensor, targets: Sequence[tuple[int, ...]]) -> Tensor:
        """Returns the cross-entropies ``[N, P]`` of a head at N states ``[N, D]``; each target has P numbers."""
        target = torch.tensor(targets).view(len(targets), len(HEADS[name]))
        logits = self.heads[name](hidden).split(HEADS[name], -1)
        return torch.stack([F.cross_entropy(part, target[:, k], reduction="none") for k, part in enumerate(logits)], 1)

    def of_pictures(self, features: Tensor, shown: Sequence[TaughtPicture]) -> dict[str, Tensor]:
        """Returns the mean loss, a scalar, over tokens of ``features [B, T, D]``. Boxes count only at tokens with a thing."""
        known = torch.tensor([cell is not None for picture in shown for cell in picture.cells])
        targets = [cell for picture in shown for cell in picture.cells if cell is not None]
        losses = self.losses("cells", features.flatten(0, 1)[known], targets)
        occupied = torch.tensor([cell[0] != EMPTY for cell in targets])
        return {"cells": losses[:, 0].mean() + losses[occupied, 1:].mean()}

    def of_answers(self, hidden: Tensor, asked: Sequence[TaughtQuestion]) -> dict[str, Tensor]:
        """Returns mean losses, scalars, over the questions with such targets. ``hidden [A, D]`` are the states before the answers."""
        targets = {"parts": [question.parts for question in asked], "where": [question.first_box for question in asked]}
        rows = {name: [k for k, target in enumerate(column) if target] for name, column in targets.items()}
        return {name: self.losses(name, hidden[some], [targets[name][k] for k in some]).mean() for name, some in rows.items() if some}

    def of_words(self, hidden: Tensor, targets: Sequence[WordTarget]) -> dict[str, Tensor]:
        """Returns mean losses, scalars, over words. ``hidden [M, D]`` are the states of the M targets."""
        rows = {name: [k for k, (_, head, _) in enumerate(targets) if head == name] for name in ("there", "bound", "related", "placed")}
        heads = {"placed": "where"}  # the same head, here for a thing that a prompt names
        return {n: self.losses(heads.get(n, n), hidden[some], [targets[k][2] for k in some]).mean() for n, some in rows.items() if some}


def word_targets(tokenizer: Any, rows: Sequence[Tensor], asked: Sequence[TaughtQuestion]) -> list[list[WordTarget]]:
    """Returns the word targets of each question, with token ids ``[length]`` in ``rows``. Only questions with a score have any."""
    words = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
    return [
        list(_targets_in([words[token] for token in row.tolist()], question)) if question.parts else []
        for row, question in zip(rows, asked, strict=True)
    ]


def _targets_in(words: Sequence[str], question: TaughtQuestion) -> Iterator[WordTarget]:
    """Yields the targets of a question's words. It keeps track of the things named so far and of the one that a word is about."""
    present = {value for look in question.looks for value in (look.shape, look.color, look.texture)}
    in_plan = question.reward == "spa"  # a canvas has the plan's things in the plan's order
    named: list[Look] = []  # the things named so far, with the attributes named so far
    waiting, about, side = Look(None), 0, False
    for at, word in enumerate(words):
        value = attribute(word)
        if value is not None:
            yield at, "there", (int(value in present),)
        attributes = _attributes(words[at - 1], word)
        if value in SHAPES:
            named.append(replace(waiting, shape=value))
            about, waiting = len(named) - 1, Look(None)
            yield from _thing_targets(at, named[about], question, about if in_plan else None)
        elif attributes and words[at - 1] in LATE and about < len(named):
            named[about] = replace(named[about], **attributes)
            yield from _thing_targets(at, named[about], question)
        else:
            waiting = replace(waiting, **attributes)
        about, side = ORDINALS.get(word, about), side or word in RELATIONS
        if side and len(named) == 2 and question.parts[-1] and (word in RELATIONS or value in SHAPES):  # the relation is complete
            yield at, "related", (question.parts[-1],)
            side = False
        if word == ".":  # ends a plan; the prompt follows
            named, waiting, in_plan = [], Look(None), False


def _attributes(before: str, word: str) -> dict[str, str]:
    """Returns the colour or texture that a word names. ``before`` is the word before it."""
    texture = {"with stripes": "striped", "without stripes": "plain"}.get(f"{before} {word}", word)
    return {"color": word} if word in COLORS else {"texture": texture} if texture in TEXTURES else {}


def _thing_targets(at: int, look: Look, question: TaughtQuestion, number: int | None = None) -> Iterator[WordTarget]:
    """Yields the agreement of the nearest thing, and the box of thing ``number`` or else of the first thing with this look."""
    yield at, "bound", (closest(look, question.looks),)
    boxes = [box for other, box in zip(question.looks, question.boxes, strict=False) if look.admits(other)]  # a plan has no boxes
    if number is not None and number < len(question.boxes):
        yield at, "placed", question.boxes[number]
    elif boxes:
        yield at, "placed", boxes[0]


def closest(look: Look, others: Sequence[Look]) -> int:
    """Returns the largest agreement of a look with others, in sixths; 0 if there is none."""
    return max((round((MATCHES - 1) * look.agreement(other)) for other in others), default=0)


def attribute(word: str) -> str | None:
    """Returns the colour, shape or texture that a word names, in the singular. "plain" gives None, because it is often left out."""
    singular = word.removesuffix("es") if word == "crosses" else word.removesuffix("s") if word != "cross" else word
    return word if word in COLORS or word == "striped" else singular if singular in SHAPES else None
