"""Answers a judge's questions by asking a server. It is another :class:`gotr1_judges.asking.Answerer`: rubrics and readers are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from gotr1_judges.asking import NoAnswer, Question
from gotr1_judges.rubrics import WORDS
from gotr1_served.client import Client, Request
from gotr1_served.failures import Reply
from gotr1_served.pictures import PictureFormat
from gotr1_served.replies import no_answer, read_answer, read_decision, read_probabilities

if TYPE_CHECKING:
    from PIL.Image import Image

CHAT, DECISION = "/chat/completions", "/systemone"
PICTURE = "<picture-1>"
"""Stands for the picture in a question to ``/systemone``. No value can contain it, see `harmless`."""
TOP = 20
"""Most likely tokens that are asked for, as many as OpenAI and vLLM give."""
Source = Literal["top_logprobs", "token_ids", "systemone"]
"""How a server gives probabilities of an answer's first token."""
_LOOKS_SPECIAL = re.compile(r"<(?=[|/\w])|\[(?=/?[A-Z_]{2,}\])")
VERDICT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "description": {"type": "string"},
        "reason": {"type": "string"},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
    },
    "required": ["description", "reason", "score"],
    "additionalProperties": False,
}
"""The schema of a verdict. The reason comes before the score, so that the score follows from it."""


def harmless(text: str) -> str:
    """Returns a value of a question in which nothing is a special token: a space is put after ``<`` and ``[`` that could begin one.

    The server makes tokens of the whole conversation, and a prompt or a plan may try to end it.
    """
    return _LOOKS_SPECIAL.sub(lambda match: f"{match[0]} ", text)


def question_text(question: Question) -> str:
    """Returns the text of a question, its values `harmless`."""
    return "".join(harmless(part) if number % 2 else part for number, part in enumerate(question.parts))


@dataclass(frozen=True)
class Style:
    """What is sent with every question.

    Attributes:
        model: the model's name on the server.
        pictures: how pictures are sent.
        answer_tokens: most tokens of a written answer.
        limit_key: the server's name of that limit, ``max_tokens`` or ``max_completion_tokens``.
        temperature: None sends none.
        use_schema: the server can be made to write JSON of a schema.
        source: how it gives probabilities; None if it does not.
        token_ids: with ``source`` ``token_ids``, the tokens of each word.
        extra: other fields of the body.
    """

    model: str
    pictures: PictureFormat
    answer_tokens: int = 512
    limit_key: str = "max_tokens"
    temperature: float | None = 0.0
    use_schema: bool = False
    source: Source | None = None
    token_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def chat(self, text: str, image: Image | None, tokens: int, **more: Any) -> dict[str, Any]:
        """Returns the body of a chat completion with one message: the picture, then the text."""
        content: Any = text if image is None else [self.pictures.part(image), {"type": "text", "text": text}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], self.limit_key: tokens, **more, **self.extra}
        return body if self.temperature is None else {"temperature": self.temperature, **body}

    def written(self, question: Question) -> dict[str, Any]:
        """Returns the body of a question with a written answer."""
        schema = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": VERDICT}}
        more = {"response_format": schema} if question.kind == "score" and self.use_schema else {}
        return self.chat(question_text(question), question.image, self.answer_tokens, **more)

    def weighed(self, question: Question, words: Sequence[str]) -> dict[str, Any]:
        """Returns the body of a question whose answer is one of ``words``, for a chat completion."""
        more: dict[str, Any] = {"logprobs": True, "top_logprobs": TOP}
        if self.source == "token_ids":
            more = {"logprobs": True, "logprob_token_ids": sorted({token for word in words for token in self.token_ids[word]})}
        return self.chat(question_text(question), question.image, 1, **more)

    def decision(self, question: Question, words: Sequence[str]) -> dict[str, Any]:
        """Returns the body of a question whose answer is one of ``words``, for ``/systemone`` of ``transformers serve``."""
        asked: dict[str, Any] = {"type": "noul"} if words == WORDS["yes"] else {"type": "score", "criteria": list(words)}
        body: dict[str, Any] = {"model": self.model, "state": question_text(question), "questions": {"q": asked}}
        if question.image is None:
            return body
        asset = {"type": "image", "format": "png", "data_base64": self.pictures.base64_png(question.image)}
        return body | {"state": f"{PICTURE}\n{body['state']}", "assets": {PICTURE: asset}}


class ServedAnswerer:
    """Answers questions through a client, all at once. ``style`` is what is sent with every question."""

    def __init__(self, client: Client, style: Style) -> None:
        self.client, self.style = client, style

    def answer(self, questions: Sequence[Question]) -> list[str | NoAnswer]:
        """Returns the written answers; for a question without one, why."""
        replies = self.client.ask([Request(CHAT, partial(self.style.written, question)) for question in questions])
        return [read_answer(reply.data) if isinstance(reply, Reply) else no_answer(reply) for reply in replies]

    def word_probabilities(self, questions: Sequence[Question], words: Sequence[str]) -> list[list[float] | NoAnswer]:
        """Returns for each question the probability, in [0,1], that its answer begins with each word; where there is none, why."""
        path, body, read = CHAT, self.style.weighed, read_probabilities
        if self.style.source == "systemone":
            path, body, read = DECISION, self.style.decision, read_decision
        replies = self.client.ask([Request(path, partial(body, question, words)) for question in questions])
        return [read(reply.data, words) if isinstance(reply, Reply) else no_answer(reply) for reply in replies]

    def cache_key(self) -> dict[str, Any] | None:
        """Returns what answers depend on: server, model, and what is sent with every question. None if answers are sampled."""
        style = self.style
        if style.temperature != 0:
            return None
        facts = {"server": self.client.connection.base_url, "model": style.model, "source": style.source, "schema": style.use_schema}
        return {**facts, "pictures": repr(style.pictures), "answer_tokens": style.answer_tokens, "extra": dict(style.extra)}

    def extent(self, image: Image) -> tuple[float, float]:
        """Returns width and height of a picture in the unit of the boxes in answers about it."""
        return self.style.pictures.extent(image)
