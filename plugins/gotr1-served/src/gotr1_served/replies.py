"""Reads replies: the text that a model wrote, and the probabilities of its first token. What is not there is said, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gotr1_judges.asking import NoAnswer
from gotr1_served.failures import Failure, one_text


def no_answer(failure: Failure) -> NoAnswer:
    """Returns what a judge is told of a failed request."""
    return NoAnswer(failure.kind.value, failure.text)


def read_answer(data: Mapping[str, Any]) -> str | NoAnswer:
    """Returns the text of a chat completion, or why there is none. A text that was cut at its longest length is none."""
    choice = _choice(data)
    if choice is None:
        return NoAnswer("no choices in the reply")
    message = choice["message"] if isinstance(choice.get("message"), Mapping) else {}
    text, finish = written_text(data), choice.get("finish_reason")
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return NoAnswer("refused by the model", one_text(message["refusal"]))
    if finish == "content_filter":
        return NoAnswer("stopped by a content filter", text)
    if is_cut(data):
        return NoAnswer("cut at answer_tokens", text)
    return text if text.strip() else NoAnswer("an empty answer")


def written_text(data: Mapping[str, Any]) -> str:
    """Returns what a model wrote, whatever became of it; empty if it wrote nothing."""
    message = (_choice(data) or {}).get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, str) else ""


def is_cut(data: Mapping[str, Any]) -> bool:
    """True if a text was cut at its longest length."""
    return (_choice(data) or {}).get("finish_reason") == "length"


def read_probabilities(data: Mapping[str, Any], words: Sequence[str]) -> list[float] | NoAnswer:
    """Returns the probability of each word as the first token of a chat completion with ``top_logprobs``.

    A word counts in any case, with and without a space before it. One that is not among the tokens of the reply has 0.
    """
    tokens = first_tokens(data)
    if tokens is None:
        text = read_answer(data)
        return text if isinstance(text, NoAnswer) and "cut" not in text.problem else NoAnswer("no probabilities in the reply")
    sums = dict.fromkeys(words, 0.0)
    for token, probability in tokens.items():
        if (word := token.strip().lower()) in sums:
            sums[word] += probability
    return [min(1.0, total) for total in sums.values()]


def first_tokens(data: Mapping[str, Any]) -> dict[str, float] | None:
    """Returns the probability of each likely first token, or None if the reply has none, or numbers that are no log-probabilities."""
    choice = _choice(data) or {}
    content = choice["logprobs"].get("content") if isinstance(choice.get("logprobs"), Mapping) else None
    first = content[0] if isinstance(content, list) and content else None
    rows = first.get("top_logprobs") if isinstance(first, Mapping) else None
    tokens: dict[str, float] = {}
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, Mapping) or not isinstance(row.get("token"), str) or not isinstance(row.get("logprob"), int | float):
            return None
        tokens[row["token"]] = tokens.get(row["token"], 0.0) + math.exp(min(0.0, row["logprob"]))
    return tokens if tokens and 0.0 < sum(tokens.values()) < 1.02 else None


def read_decision(data: Mapping[str, Any], words: Sequence[str]) -> list[float] | NoAnswer:
    """Returns the probabilities of words in a reply of ``/systemone``: of no and yes, or of the levels that the words are."""
    answers = data.get("answers")
    answer = answers.get("q") if isinstance(answers, Mapping) else None
    answer = answer if isinstance(answer, Mapping) else {}
    yes, row = answer.get("noul"), answer.get("probabilities")
    numbers = [row.get(str(level)) for level in range(len(words))] if isinstance(row, Mapping) else [yes]
    known = [float(number) for number in numbers if isinstance(number, int | float) and 0 <= number <= 1]
    if len(known) != len(numbers):
        return NoAnswer("no probabilities in the reply")
    return known if isinstance(row, Mapping) else [1 - known[0], known[0]]


def _choice(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices = data.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else None
