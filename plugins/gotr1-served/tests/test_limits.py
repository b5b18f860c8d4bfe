"""When requests are sent, on a clock of the test: the pauses between tries, fewer at once after a 429, and a server that is down."""

from __future__ import annotations

import asyncio

import pytest

from gotr1_served.limits import LONGEST_DELAY, Breaker, Throttle, backoff
from gotr1_served.options import OpenAIJudgeOptions


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_with_jitter_up_to_a_limit() -> None:
    for tries, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (50, 8.0)):
        drawn = [backoff(tries) for _ in range(200)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
        assert len(set(drawn)) > 100


def test_a_server_that_is_down_is_said_within_a_minute() -> None:
    """With the default patience. Requests that fail at once come back after the longest pause of all at the latest."""
    clock, said = Clock(), list[str]()
    breaker, begun = Breaker(OpenAIJudgeOptions().patience, said.append, clock), clock.now
    while not said:
        breaker.failed("refused", clock.now)
        clock.now += LONGEST_DELAY
    assert breaker.open
    assert clock.now - LONGEST_DELAY - begun < 60
    clock.now += 20
    breaker.answered()
    assert not breaker.open
    assert "it answers again" in said[1]


def test_one_answer_in_between_keeps_a_server_up() -> None:
    clock, said = Clock(), list[str]()
    breaker = Breaker(45.0, said.append, clock)
    for number in range(100):
        clock.now += 10
        breaker.answered() if number % 4 == 3 else breaker.failed("refused", clock.now)
    assert not said


def test_a_429_halves_the_requests_at_once_and_answers_bring_them_back() -> None:
    async def work() -> None:
        clock = Clock()
        throttle = Throttle(16, clock)
        limits = []
        for _ in range(5):
            throttle.overloaded(None)
            throttle.overloaded(None)  # of the same burst: counts once
            limits.append(throttle.limit)
            clock.now += 1.0
        assert limits == [8, 4, 2, 1, 1]
        rounds = 0
        while throttle.limit < 15.99:
            for _ in range(int(throttle.limit)):
                throttle.answered()
            rounds += 1
        assert rounds == pytest.approx(15, abs=3)  # one more for each round
        for _ in range(100):
            throttle.answered()
        assert throttle.limit == 16
        throttle.overloaded(7.0)
        assert throttle.resume_at == clock.now + 7.0
        throttle.overloaded(3.0)
        assert throttle.resume_at == clock.now + 7.0  # the longest pause that was asked for

    asyncio.run(work())
