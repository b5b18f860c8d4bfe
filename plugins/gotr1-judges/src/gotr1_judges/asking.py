"""The interface between a judge and the model that answers its questions. The model may run in this process or behind a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Question:
    """A question in words, with or without a picture.

    ``parts`` alternate: words of the rubric, then a value that was filled in (a prompt, a phrase), and so on. Words of the rubric may
    contain special tokens. Values come from somebody else, so they must stay plain text whatever they look like.
    ``kind`` is that of the answer, as the rubric says it.
    """

    parts: tuple[str, ...]
    image: Image | None = None
    kind: str = ""

    @property
    def text(self) -> str:
        """The full text, for an answerer that does not tokenize."""
        return "".join(self.parts)


@dataclass(frozen=True)
class NoAnswer:
    """Stands for an answer that there is not.

    Attributes:
        problem: why, in a few words: ``refused``, ``the deadline has passed``.
        text: what came instead, if anything did.
    """

    problem: str
    text: str = ""


NOT_ASKED = NoAnswer("the question cannot be asked")
"""What None means in place of an answer."""


class Answerer(Protocol):
    """Answers questions, each independently: neither their order nor the other questions change an answer."""

    def answer(self, questions: Sequence[Question]) -> Sequence[str | NoAnswer | None]:
        """Returns the written answers. Where there is none, it says why, or None if the question cannot be asked."""
        ...

    def word_probabilities(self, questions: Sequence[Question], words: Sequence[str]) -> Sequence[list[float] | NoAnswer | None]:
        """Returns for each question the probabilities, in [0,1], that its answer begins with each of ``words``.

        Each word is one token. Where there are none, it says why, or None if the question cannot be asked.
        """
        ...

    def extent(self, image: Image) -> tuple[float, float]:
        """Returns width and height of a picture in the unit of the boxes in answers about it."""
        ...
