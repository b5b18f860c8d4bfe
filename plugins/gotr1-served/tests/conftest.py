"""Samples, options and addresses that several tests share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import ChatServer, FaultProxy, faulty, serving
from PIL import Image

from gotr1_core.chain import Chain, Region
from gotr1_core.samples import Prompt, Sample
from gotr1_served.judge import OpenAIJudge
from gotr1_served.options import OpenAIJudgeOptions

KEY = "sk-test-4f9a1c7e55d2"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret key in the environment variable SERVED_KEY."""
    monkeypatch.setenv("SERVED_KEY", KEY)
    return KEY


@pytest.fixture
def upstream() -> ChatServer:
    return ChatServer()


@pytest.fixture
def proxy(upstream: ChatServer) -> Iterator[FaultProxy]:
    """A proxy before ``upstream``; its address is ``proxy.url``."""
    with serving(upstream) as url, faulty(url) as (address, made):
        made.url = address  # type: ignore[attr-defined]
        yield made


def make_judge(url: str, **options: Any) -> OpenAIJudge:
    """A judge that fails fast."""
    quick = {"timeout": 5.0, "deadline": 10.0, "patience": 2.0, **options}
    quick["patience"] = min(quick["patience"], quick["deadline"])
    return OpenAIJudge(OpenAIJudgeOptions(base_url=url, **quick))


def make_samples(count: int) -> list[Sample]:
    """Samples whose prompts differ."""
    chain = Chain.of(["a ", Region("dog", (0, 0, 500, 500))])
    return [Sample(Prompt(f"a dog, number {n}"), chain, Image.new("RGB", (48, 48), "white")) for n in range(count)]


def missing(scores: list[float]) -> int:
    return sum(map(math.isnan, scores))
