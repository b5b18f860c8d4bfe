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
    """

    parts: tuple[str, ...]
    image: Image | None = None

    @property
    def text(self) -> str:
        """The full text, for an answerer that does not tokenize."""
        return "".join(self.parts)


class Answerer(Protocol):
    """Answers questions, each independently: neither their order nor the other questions change an answer."""

    def answer(self, questions: Sequence[Question]) -> list[str | None]:
        """Returns the written answers, None where there is none."""
        ...

    def word_probabilities(self, questions: Sequence[Question], words: Sequence[str]) -> list[list[float] | None]:
        """Returns for each question the probabilities, in [0,1], that its answer begins with each of ``words``.

        Each word is one token. A question that cannot be asked has None.
        """
        ...

    def extent(self, image: Image) -> tuple[float, float]:
        """Returns width and height of a picture in the unit of the boxes in answers about it."""
        ...
