"""Finds out what a server really does, with a few small requests: what it says of itself, or silently ignores, is not believed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from gotr1_core.errors import UsageError
from gotr1_judges.asking import NoAnswer, Question
from gotr1_judges.rubrics import WORDS
from gotr1_served.answerer import CHAT, DECISION, Source, Style
from gotr1_served.client import Client, Request, usage
from gotr1_served.failures import Failure, Kind, Reply, ServerError, one_text
from gotr1_served.replies import first_tokens, read_answer, read_decision, written_text

TOKENS = 8
GREETING = "Say hello in one word."
COLOUR = "Which colour is this picture? Answer with one word, yes or no: is it red?"
LEAST_PICTURE = 4
"""Tokens that a picture takes at least. A server that counts fewer has dropped it."""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string", "enum": ["asked"]}, "score": {"type": "integer", "enum": [7]}},
    "required": ["reason", "score"],
    "additionalProperties": False,
}
"""Nobody writes this to the question `GREETING` unless the server makes it."""


@dataclass(frozen=True)
class Abilities:
    """What a server does.

    Attributes:
        sees: it takes a picture; ``picture`` says what happened if not.
        use_schema: it makes a model write JSON of a schema.
        sources: ways in which it gives probabilities, the best first.
        token_ids: with ``token_ids``, the tokens of each word.
        counts: it says how many tokens were read and written.
        notes: what was tried and what came, for people.
    """

    sees: bool = False
    picture: str = ""
    use_schema: bool = False
    sources: tuple[Source, ...] = ()
    token_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    counts: bool = True
    notes: tuple[str, ...] = ()


def find_model(client: Client, model: str | None, key: str) -> str:
    """Returns the model to ask for: the given one, or the only one that the server lists.

    Raises:
        UsageError: the server cannot be reached, refuses the key, or lists several models and none was given.
    """
    listed, problem = _listed(client, key, known=model is not None)
    if model is not None:
        return model
    if len(listed) == 1:
        return listed[0]
    found = f"lists {', '.join(listed[:10])}" if listed else f"lists no models{problem}"
    raise UsageError(f"{key}.model is not given, and {client.connection.base_url} {found}", hint=f"set {key}.model")


def _listed(client: Client, key: str, *, known: bool) -> tuple[list[str], str]:
    """The models that a server lists, and why there are none. If the model is ``known``, a list that fails does not matter."""
    try:
        (reply,) = client.ask([Request("/models")], again=False)
    except ServerError as error:
        if " answers 404" in error.message:  # a server without a list may still answer questions
            return [], f" ({error.message})"
        raise as_usage_error(error, key) from None
    if isinstance(reply, Failure) and known and reply.kind is Kind.BROKEN:  # transformers serve without a cache of models answers 500
        return [], f" ({reply.text})"
    if isinstance(reply, Failure):
        hint = "is the server running, and is this its address?"
        raise UsageError(f"{key}.base_url: {client.connection.base_url} does not answer: {reply.text}", hint=hint)
    rows = reply.data.get("data")
    rows = rows if isinstance(rows, list) else []
    return [row["id"] for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), str)], ""


def as_usage_error(error: ServerError, key: str) -> UsageError:
    """Returns the error of a server that nothing was asked of yet. ``key`` is the component's place in the config."""
    return UsageError(f"{key}: {error.message}", hint=error.hint)


def probe(client: Client, style: Style, key: str, *, probabilities: bool) -> Abilities:
    """Returns what a server does with a picture, a schema and, if ``probabilities``, a question whose answer is one token.

    Raises:
        UsageError: the server does not answer at all, or refuses every question.
    """
    plain = style.chat(GREETING, None, TOKENS)
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    schema = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}
    bodies = [plain, style.chat(GREETING, red, TOKENS), style.chat(GREETING, None, 64, response_format=schema)]
    replies = _ask(client, [Request(CHAT, lambda body=body: body) for body in bodies], key)  # type: ignore[misc]
    first, picture, structured = replies
    if isinstance(first, Failure):
        hint = "look at the server's own messages; some models want temperature=null or another limit_key"
        raise UsageError(f"{key}: {client.connection.base_url} does not answer a question: {first.text}", hint=hint)
    counts = usage(first.data)[0] > 0
    abilities = Abilities(*_sees(first, picture), counts=counts)
    abilities = replace(abilities, use_schema=_follows_schema(structured), notes=(_note("json_schema", structured),))
    return _with_probabilities(client, style, abilities, key) if probabilities else abilities


def _ask(client: Client, requests: Sequence[Request], key: str) -> list[Reply | Failure]:
    try:
        return client.ask(requests)
    except ServerError as error:
        raise as_usage_error(error, key) from None


def _sees(plain: Reply, picture: Reply | Failure) -> tuple[bool, str]:
    """True if a picture was taken; else what happened."""
    if isinstance(picture, Failure):
        return False, picture.text
    read, more = usage(plain.data)[0], usage(picture.data)[0]
    if read and more < read + LEAST_PICTURE:
        return False, f"a question had {read} tokens without a picture and {more} with one: the picture was dropped"
    return True, ""


def _follows_schema(reply: Reply | Failure) -> bool:
    text = written_text(reply.data) if isinstance(reply, Reply) else ""  # spaces after the JSON may be cut
    try:
        return bool(json.loads(text) == {"reason": "asked", "score": 7})
    except ValueError:
        return False


def _note(what: str, reply: Reply | Failure) -> str:
    text = reply.text if isinstance(reply, Failure) else read_answer(reply.data)
    return f"{what}: {one_text(text.problem if isinstance(text, NoAnswer) else text)}"


def _with_probabilities(client: Client, style: Style, abilities: Abilities, key: str) -> Abilities:
    """Tries the ways in which servers give probabilities, in the order in which they are preferred."""
    question = Question(("Is fire hot? Answer with one word, yes or no.",), kind="yes")
    digits = Question(("How many legs has a dog? Answer with a single digit and nothing else.",), kind="digit")
    sources: list[Source] = []
    (top,) = _ask(client, [Request(CHAT, lambda: style.weighed(digits, WORDS["digit"]))], key)
    tokens = first_tokens(top.data) if isinstance(top, Reply) else None
    notes = [*abilities.notes, f"top_logprobs: {len(tokens)} tokens" if tokens else _note("top_logprobs", top)]
    if tokens is not None and len(tokens) >= len(WORDS["digit"]):
        sources.append("top_logprobs")
    token_ids: Mapping[str, Sequence[int]] = {}
    if not sources and (token_ids := _token_ids(client, style)):
        weighed = replace(style, source="token_ids", token_ids=token_ids)
        (exact,) = _ask(client, [Request(CHAT, lambda: weighed.weighed(question, WORDS["yes"]))], key)
        if isinstance(exact, Reply) and first_tokens(exact.data):
            sources.append("token_ids")
        notes.append(_note("logprob_token_ids", exact))
    if not sources:
        try:
            (decided,) = client.ask([Request(DECISION, lambda: style.decision(question, WORDS["yes"]))])
        except ServerError as error:
            notes.append(f"systemone: {error.message}")
        else:
            if isinstance(decided, Reply) and not isinstance(read_decision(decided.data, WORDS["yes"]), NoAnswer):
                sources.append("systemone")
            notes.append(f"systemone: {'probabilities' if sources else one_text(decided)}")
    return replace(abilities, sources=tuple(sources), token_ids=token_ids, notes=tuple(notes))


def _token_ids(client: Client, style: Style) -> dict[str, list[int]]:
    """The single tokens of every one-token answer, as vLLM's ``/tokenize`` gives them; empty if the server has no such thing."""
    url = urlsplit(client.connection.base_url)
    path = f"{url.scheme}://{url.netloc}/tokenize"
    found: dict[str, list[int]] = {}
    for word in (word for words in WORDS.values() for word in words):
        spellings = sorted({space + form for form in (word, word.capitalize(), word.upper()) for space in ("", " ")})
        bodies = [{"model": style.model, "prompt": form, "add_special_tokens": False} for form in spellings]
        try:
            replies = client.ask([Request(path, lambda body=body: body) for body in bodies])  # type: ignore[misc]
        except ServerError:
            return {}
        rows = [reply.data.get("tokens") for reply in replies if isinstance(reply, Reply)]
        found[word] = sorted({row[0] for row in rows if isinstance(row, list) and len(row) == 1 and isinstance(row[0], int)})
        if not found[word]:
            return {}
    return found
