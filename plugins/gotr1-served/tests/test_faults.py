"""Every fault between client and server: what the judge returns, what the user sees. A score that could not be had is NaN, never 0."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import pytest
from chat_server import ChatServer, Fault, FaultProxy, completion, free_port, listening, question_of, send, serving

from gotr1_core.engine.interrupts import Paused
from gotr1_core.errors import UsageError
from gotr1_served.failures import ServerError

from .conftest import KEY, make_judge, make_samples, missing

RATE = {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}


def scores(judge: object, count: int = 4) -> list[float]:
    return judge.score(make_samples(count), ["pi"])["pi"]  # type: ignore[attr-defined,no-any-return]


# -- faults after which the same question is asked again --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500),
        Fault(503, b"<html>busy</html>", {"Content-Type": "text/html"}),
        Fault(429, RATE),
        Fault(408),
        Fault(409),
        Fault(200, b"<html>this is a proxy's page</html>"),
        Fault(200, b'{"choices": [{"message": {"content": "{\\"score\\"'),
        Fault(200, b"[1, 2]"),
        Fault(200, b"\xff\xfe\x00"),
        Fault(cut="before"),
        Fault(cut="half"),
    ],
    ids=["500", "503", "429", "408", "409", "html", "half-json", "no-object", "no-text", "cut", "half"],
)
def test_a_fault_that_passes_costs_a_try_and_no_score(proxy: FaultProxy, fault: Fault) -> None:
    judge = make_judge(proxy.url)
    before = proxy.seen["questions"]
    proxy.faults.extend([fault] * 3)
    assert scores(judge) == [0.6] * 4
    assert proxy.seen["questions"] - before == 7
    assert judge.counts()["unanswered"] == 0


def test_a_slow_answer_is_waited_for(proxy: FaultProxy) -> None:
    judge = make_judge(proxy.url)
    proxy.faults.extend([Fault(delay=1.0)] * 4)
    assert scores(judge) == [0.6] * 4


def test_too_slow_an_answer_is_asked_for_again(proxy: FaultProxy) -> None:
    judge = make_judge(proxy.url, timeout=0.5)
    proxy.faults.append(Fault(delay=2.0))
    assert scores(judge) == [0.6] * 4


def test_retry_after_is_honoured_by_all_requests(proxy: FaultProxy) -> None:
    judge = make_judge(proxy.url, concurrency=1)
    proxy.faults.append(Fault(429, RATE, {"Retry-After": "1"}))
    proxy.times.clear()
    assert scores(judge) == [0.6] * 4
    assert proxy.times[1] - proxy.times[0] >= 0.95  # whichever question it is


def test_a_pause_beyond_the_deadline_is_not_waited_for(proxy: FaultProxy, capsys: pytest.CaptureFixture[str]) -> None:
    judge = make_judge(proxy.url)
    proxy.rule = lambda n: Fault(429, RATE, {"Retry-After": "600"})
    begun = time.monotonic()
    assert missing(scores(judge)) == 4
    assert time.monotonic() - begun < 11
    assert "too many requests" in capsys.readouterr().err


def test_the_concurrency_adapts_to_429(proxy: FaultProxy, upstream: ChatServer) -> None:
    judge = make_judge(proxy.url, concurrency=16, deadline=30.0)
    proxy.most_at_once = 0
    proxy.rule = lambda n: Fault(429, RATE) if proxy.at_once > 4 else Fault(delay=0.05)
    assert scores(judge, 48) == [0.6] * 48
    limit = judge.client._throttle
    assert limit is not None
    assert limit.limit < 16


# -- faults of one question -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (
            Fault(400, {"error": {"message": "This model's maximum context length is 4096 tokens", "code": "context_length_exceeded"}}),
            "refused",
        ),
        (Fault(400, {"error": {"message": "Invalid image", "code": "invalid_image"}}), "refused"),
        (Fault(422, {"detail": [{"loc": ["body"], "msg": "unknown field"}]}), "refused"),
        (Fault(413, b"too large"), "refused"),
        (completion("I can't help with that."), None),
        (completion(None, message={"refusal": "I can't help with that."}), None),
        (completion("", finish_reason="content_filter"), None),
        (completion('{"description": "a dog", "reason": "it is", "score": 1', finish_reason="length"), None),
        (completion("   "), None),
        (completion(None), None),
        ({"id": "1", "choices": []}, None),
        ({"id": "1", "choices": None}, None),
        ({"id": "1"}, None),
        ({"choices": [{"message": None}]}, None),
        ({"choices": ["x"]}, None),
    ],
    ids=[
        *("context", "picture", "field", "size", "says-no", "refusal", "filter", "length", "blank", "null", "no-choices", "null-choices"),
        *("nothing", "no-message", "no-choice"),
    ],
)
def test_a_question_without_an_answer_has_no_score_and_is_not_repeated(
    proxy: FaultProxy, reply: Fault | dict[str, object], problem: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = make_judge(proxy.url)
    before = proxy.seen["questions"]
    proxy.faults.append(reply if isinstance(reply, Fault) else Fault(200, reply))
    found = scores(judge)
    assert missing(found) == 1
    assert sorted(found, key=math.isnan)[:3] == [0.6] * 3
    assert proxy.seen["questions"] - before == 4
    if problem:
        assert problem in capsys.readouterr().err


def test_an_error_that_stays_is_given_up_after_some_tries(upstream: ChatServer, proxy: FaultProxy) -> None:
    judge = make_judge(proxy.url, tries=2)
    upstream.broken = lambda body: "number 2" in question_of(body)
    before = proxy.seen["questions"]
    found = scores(judge)
    assert missing(found) == 1
    assert math.isnan(found[2])
    assert proxy.seen["questions"] - before == 5


# -- faults of all questions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), "answers 401: Incorrect API key provided: …"),
        (Fault(403, {"error": {"message": "not yours"}}), "answers 403: not yours"),
        (Fault(404, {"error": {"message": "The model `x` does not exist"}}), "answers 404: The model `x` does not exist"),
        (Fault(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}), "no credit is left"),
        (Fault(307, b"", {"Location": "http://evil.example/v1"}), "redirects to http://evil.example/v1"),
        (Fault(302, b"", {"Location": "/elsewhere"}), "redirects to /elsewhere"),
    ],
    ids=["401", "403", "404", "quota", "redirect-host", "redirect"],
)
def test_a_fault_of_all_questions_pauses_at_once(proxy: FaultProxy, key: str, fault: Fault, said: str) -> None:
    judge = make_judge(proxy.url, key_env="SERVED_KEY", concurrency=2)
    before = proxy.seen["questions"]
    proxy.rule = lambda n: fault
    with pytest.raises(Paused) as error:
        scores(judge, 40)
    assert said in error.value.message
    assert error.value.hint
    assert KEY not in f"{error.value.message} {error.value.hint}"
    assert proxy.seen["questions"] - before <= 2
    with pytest.raises(UsageError, match=r".") as refused:  # a new judge does not begin
        make_judge(proxy.url, key_env="SERVED_KEY")
    assert said in refused.value.message


def test_a_redirect_never_takes_the_key_along(key: str) -> None:
    other = ChatServer()
    with ExitStack() as stack:
        elsewhere = stack.enter_context(serving(other))
        url = stack.enter_context(listening(lambda handler, _: send(handler, 308, b"", {"Location": f"{elsewhere}/models"})))
        stack.enter_context(pytest.raises(UsageError, match="redirects"))
        make_judge(url, key_env="SERVED_KEY")
    assert other.headers == []


def test_a_wrong_certificate_is_refused(upstream: ChatServer, key: str) -> None:
    certificate = Path(__file__).with_name("wrong-certificate.pem")
    with serving(upstream, certificate=certificate) as url, pytest.raises(UsageError, match="certificate that is not trusted"):
        make_judge(url, key_env="SERVED_KEY")
    assert upstream.headers == []


def test_a_server_that_is_not_there_is_said_at_the_start() -> None:
    with pytest.raises(UsageError, match="does not answer") as error:
        make_judge(f"http://127.0.0.1:{free_port()}/v1")
    assert error.value.hint


# -- a server that dies -----------------------------------------------------------------------------------------------------


@pytest.fixture
def restartable(upstream: ChatServer) -> tuple[ExitStack, Callable[[], str]]:
    """A stack that closes the server, and a function that starts it, always at the same port."""
    stack, port = ExitStack(), free_port()
    return stack, lambda: stack.enter_context(serving(upstream, port=port))


def test_a_server_that_comes_back_in_time_costs_no_score(restartable: tuple[ExitStack, Callable[[], str]]) -> None:
    stack, start = restartable
    with stack:
        judge = make_judge(start(), patience=8.0)
        stack.close()
        Timer(1.5, start).start()
        assert scores(judge) == [0.6] * 4


def test_a_server_that_is_down_is_asked_no_more_until_it_answers(
    restartable: tuple[ExitStack, Callable[[], str]], capsys: pytest.CaptureFixture[str]
) -> None:
    stack, start = restartable
    with stack:
        judge = make_judge(start(), patience=1.0)
        stack.close()
        begun = time.monotonic()
        assert missing(scores(judge)) == 4
        assert time.monotonic() - begun < 8
        assert capsys.readouterr().err.count("It is asked no more until it answers") == 1
        spent = judge.counts()["requests"]
        begun = time.monotonic()
        assert missing(scores(judge, 100)) == 100
        assert time.monotonic() - begun < 2
        assert judge.counts()["requests"] == spent + 1  # one question finds out
        start()
        assert scores(judge) == [0.6] * 4
        assert "it answers again" in capsys.readouterr().err


def test_a_server_that_hangs_is_missing_after_the_deadline(proxy: FaultProxy, capsys: pytest.CaptureFixture[str]) -> None:
    judge = make_judge(proxy.url, timeout=1.0, deadline=3.0, patience=1.5)
    proxy.rule = lambda n: Fault(delay=20.0)
    begun = time.monotonic()
    assert missing(scores(judge)) == 4
    assert time.monotonic() - begun < 4
    err = capsys.readouterr().err
    assert "it has answered none of 4 requests" in err
    assert "It is asked no more until it answers" in err


def test_half_of_the_answers_may_be_late(proxy: FaultProxy) -> None:
    judge = make_judge(proxy.url, timeout=10.0, deadline=2.0)
    proxy.faults.extend([Fault(delay=10.0)] * 2)
    found = scores(judge)
    assert missing(found) == 2
    assert sum(score == 0.6 for score in found) == 2


def test_a_server_error_can_be_resumed() -> None:
    assert issubclass(ServerError, Paused)
