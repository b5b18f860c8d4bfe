"""llama.cpp's server with a tiny GGUF model: pictures, schemas, and ``top_logprobs`` that equal those of transformers' model."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_gguf import WORDS as LIKELY, llama_server, make_tiny_gguf, make_tiny_llama

from gotr1_judges.asking import Question
from gotr1_judges.rubrics import WORDS
from gotr1_served.answerer import ServedAnswerer
from gotr1_served.judge import OpenAIJudge
from gotr1_served.options import OpenAIJudgeOptions

from .conftest import make_samples, missing


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gguf")
    make_tiny_gguf(folder)
    with llama_server(folder) as address:
        yield address


def judge(url: str, scoring: str) -> OpenAIJudge:
    return OpenAIJudge(OpenAIJudgeOptions(base_url=url, scoring=scoring, answer_tokens=16, deadline=60.0))  # type: ignore[arg-type]


def posted(url: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(url.removesuffix("/v1") + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())


def asked_here(url: str, question: str, words: tuple[str, ...]) -> list[float]:
    """The probabilities of transformers' model with the same weights. The server only makes the tokens."""
    text = posted(url, "/apply-template", {"messages": [{"role": "user", "content": question}]})["prompt"]
    tokens = posted(url, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    with torch.no_grad():
        found = make_tiny_llama()(torch.tensor([tokens])).logits[0, -1].softmax(-1)
    return [float(found[len(found) - len(LIKELY) + LIKELY.index(word)]) for word in words]


def test_probabilities_are_those_of_transformers(url: str) -> None:
    """To 1e-6: both compute in float32, but add in another order. The difference seen was 2e-8; with flash attention 2e-4."""
    made = judge(url, "expected")
    assert made.settings == {"scoring": "expected", "source": "top_logprobs", "model": "tiny"}
    assert isinstance(made.answerer, ServedAnswerer)
    for kind, text in (("yes", "Is fire hot?"), ("digit", "How many legs has a dog?")):
        (theirs,) = made.answerer.word_probabilities([Question((text,), kind=kind)], WORDS[kind])
        ours = asked_here(url, text, tuple(WORDS[kind]))
        assert len({round(p, 5) for p in ours}) == len(ours)
        assert theirs == pytest.approx(ours, abs=1e-6)


def test_pictures_change_what_it_answers(url: str) -> None:
    answerer = judge(url, "expected").answerer
    questions = [Question(("Is it red?",), Image.new("RGB", (56, 56), colour)) for colour in ("red", "white", "navy")]
    found = [row for row in answerer.word_probabilities(questions, WORDS["yes"]) if isinstance(row, list)]  # type: ignore[attr-defined]
    assert len({round(row[1], 5) for row in found}) == 3


def test_scores_by_digits_are_probabilities(url: str) -> None:
    found = judge(url, "expected").score(make_samples(3), ["pi", "sem", "spa"])
    assert all(0 < score < 1 for scores in found.values() for score in scores)


def test_a_schema_is_obeyed(url: str) -> None:
    """A model of random weights writes JSON by it, but no end of its first string: that is cut, and no score."""
    made = judge(url, "text")
    assert made.answerer.style.use_schema  # type: ignore[attr-defined]
    assert missing(made.score(make_samples(2), ["pi"])["pi"]) == 2
