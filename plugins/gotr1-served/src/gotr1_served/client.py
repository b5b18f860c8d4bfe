"""Asks a server: many requests at once, again after failures, within a deadline and a budget. There is one client for a server and model.

The SDK (``openai``) makes the connections and knows the errors. Its own retries are off, because they know nothing of the others'
failures, of the deadline and of the budget.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from weakref import finalize

import httpx2
import openai

from gotr1_core.engine.console import print
from gotr1_core.engine.interrupts import Paused
from gotr1_served.background import background_loop, run_in_background
from gotr1_served.failures import Failure, Kind, Reply, ServerError, failure_of, one_text
from gotr1_served.ledger import Ledger
from gotr1_served.limits import Breaker, Throttle, backoff

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
NO_KEY = "none"
"""Sent where no key is needed. The SDK needs one."""
TRIAL = 10.0
"""Seconds that a server which was down has for its first answer."""
QUIET = 45.0
"""Seconds without any answer after which this is said."""
DOWN = Failure(Kind.DOWN, "the server is down")


@dataclass(frozen=True)
class Connection:
    """How a server is asked.

    Attributes:
        base_url: its address, such as ``https://api.openai.com/v1``.
        key: the secret key, or None. It is in no message and no ``repr``.
        concurrency: most requests at once.
        timeout: seconds for one request.
        deadline: seconds for all requests of one call of :meth:`Client.ask`.
        patience: seconds in which all requests may fail before the server counts as down.
        tries: most tries of one request that the server received.
    """

    base_url: str
    key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    timeout: float = 120.0
    deadline: float = 300.0
    patience: float = 45.0
    tries: int = 6

    @property
    def host(self) -> str:
        """The host's name in the address."""
        return urlsplit(self.base_url).hostname or ""


@dataclass(frozen=True)
class Request:
    """A request: its path behind the base URL, and a function that makes its body. It is called when the request is about to be sent."""

    path: str
    body: Callable[[], dict[str, Any]] | None = None


class Client:
    """Asks one server. Everything in it happens in the process's one background loop.

    Args:
        connection: how it is asked.
        ledger: counts what is spent, and has the budget.
        key: the component's place in the config, for hints.
    """

    def __init__(self, connection: Connection, ledger: Ledger | None = None, key: str = "judge") -> None:
        self.connection, self.ledger, self.key = connection, ledger or Ledger(), key
        self.failures: Counter[str] = Counter()
        """Requests without a reply, by :class:`Kind`."""
        self._said: set[str] = set()
        self._last_answer, self._quiet = 0.0, False
        self._throttle: Throttle | None = None
        self.breaker = Breaker(connection.patience, self.say)
        self._http: httpx2.AsyncClient | None = None
        self._sdk: openai.AsyncOpenAI | None = None

    def ask(self, requests: Sequence[Request], *, again: bool = True) -> list[Reply | Failure]:
        """Returns for each request its reply or failure, at the latest when the connection's deadline has passed.

        Without ``again`` each request is sent once, whatever becomes of it.

        Raises:
            ServerError: no request can succeed.
            Paused: the budget is spent.
        """
        if not requests:
            return []
        results = run_in_background(self._ask(requests, _Asking(again=again)))
        self.ledger.save()
        for result in results:
            if isinstance(result, ServerError):
                raise result
        if any(isinstance(result, Failure) and result.kind is Kind.STOPPED for result in results):
            unit = self.ledger.exhausted()
            if unit is not None:
                raise Paused(
                    f"the budget of {self.connection.base_url} is spent: {self.ledger.shown()}", hint=f"raise {self.key}.{unit}, and resume"
                )
        failures = [result for result in results if isinstance(result, Failure)]
        self.failures.update(failure.kind.value for failure in failures)
        for kind, text in {failure.kind: failure.text for failure in failures}.items():
            self._say_once(kind.value, text, sum(failure.kind is kind for failure in failures))
        return [result for result in results if isinstance(result, Reply | Failure)]

    def close(self) -> None:
        """Closes the connections. A later request opens new ones."""
        if self._http is not None:
            run_in_background(self._http.aclose())
            self._http = self._sdk = None

    # -- in the loop --------------------------------------------------------------------------------------------------------

    def _connected(self) -> openai.AsyncOpenAI:
        connection = self.connection
        if self._sdk is None:
            limits = httpx2.Limits(max_connections=connection.concurrency, max_keepalive_connections=connection.concurrency)
            # A proxy of the environment is for the world outside. Nothing else is taken from the environment.
            self._http = httpx2.AsyncClient(
                limits=limits, timeout=connection.timeout, follow_redirects=False, trust_env=connection.host not in LOOPBACK
            )
            finalize(self, close_later, self._http).atexit = False  # at exit the connections end with the process
            headers: Any = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
            self._sdk = openai.AsyncOpenAI(
                api_key=connection.key or NO_KEY,
                base_url=connection.base_url,
                max_retries=0,
                http_client=self._http,
                default_headers=headers,
            )
        if self._throttle is None:
            self._throttle = Throttle(connection.concurrency)
        return self._sdk

    async def _ask(self, requests: Sequence[Request], state: _Asking) -> list[Reply | Failure | ServerError]:
        begun, deadline = time.monotonic(), self.connection.deadline
        self._last_answer, self._quiet, end = begun, False, begun + deadline
        self._connected()
        if self.breaker.open:  # one request finds out if the server is back
            first = await self._once(requests[0], min(end, begun + TRIAL), _Asking(is_trial=True))
            if not isinstance(first, Reply) and self.breaker.open:
                return [first if isinstance(first, ServerError) else Failure(Kind.DOWN, first.text)] * len(requests)
        tasks = [asyncio.create_task(self._persist(request, end, state)) for request in requests]
        try:
            waiting = set(tasks)
            while waiting:
                left = end - time.monotonic()
                if left <= 0:
                    break
                _, waiting = await asyncio.wait(waiting, timeout=min(left, 1.0))
                self._watch(len(waiting))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        late = Failure(Kind.LATE, f"the deadline of {deadline:.0f} s passed")
        if self._last_answer == begun and any(task.cancelled() for task in tasks):
            self.breaker.failed(late.text, begun)
        results: list[Reply | Failure | ServerError] = []
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                raise error
            results.append(late if task.cancelled() else task.result())
        return results

    def _watch(self, waiting: int) -> None:
        """Says once in a call that a server has not answered anything for a while."""
        silent = time.monotonic() - self._last_answer
        if waiting and silent >= min(QUIET, self.connection.timeout, self.connection.deadline) and not self._quiet:
            self._quiet = True
            self.say(f"it has answered none of {waiting} requests for {silent:.0f} s; each may take {self.connection.timeout:.0f} s")

    async def _persist(self, request: Request, end: float, state: _Asking) -> Reply | Failure | ServerError:
        """Sends a request until there is a reply, a failure that would come again, or no time left."""
        tries = received = 0
        while True:
            result = await self._once(request, end, state)
            if not isinstance(result, Failure) or not result.again or not state.again:
                return result
            tries += 1
            received += result.kind is not Kind.DOWN
            delay = max(backoff(tries), result.pause or 0.0)
            if received >= self.connection.tries or time.monotonic() + delay >= end:
                return result
            await asyncio.sleep(delay)

    async def _once(self, request: Request, end: float, state: _Asking) -> Reply | Failure | ServerError:
        """Sends a request once, when there is room for it. Its body is made then."""
        throttle = self._throttle
        assert throttle is not None
        async with throttle.slot():
            if state.over:
                return Failure(Kind.STOPPED, "another request showed that none can succeed")
            if self.breaker.open and not state.is_trial:
                return DOWN
            body = None if request.body is None else await asyncio.to_thread(request.body)
            if unit := self.ledger.exhausted():
                state.over = True
                return Failure(Kind.STOPPED, f"the budget in {unit} is spent")
            self.ledger.sent()
            begun, read, written = time.monotonic(), 0, 0
            try:
                result = await self._send(request.path, body, end)
                if isinstance(result, Reply):
                    read, written = usage(result.data)
            finally:
                self.ledger.returned(read, written)
        state.over |= isinstance(result, ServerError)
        self._note(result, throttle, begun)
        return result

    async def _send(self, path: str, body: dict[str, Any] | None, end: float) -> Reply | Failure | ServerError:
        sdk, seconds = self._connected(), min(self.connection.timeout, max(0.01, end - time.monotonic()))
        try:
            async with asyncio.timeout(seconds):
                if body is None:
                    response = await sdk.get(path, cast_to=httpx2.Response)
                else:
                    response = await sdk.post(path, cast_to=httpx2.Response, body=body)
            data = json.loads(response.text)
        except (openai.APIError, TimeoutError, OSError, httpx2.HTTPError) as error:
            return self._redacted(failure_of(error, self.connection.base_url))
        except ValueError:  # not JSON, or not text
            return Failure(Kind.BROKEN, "an answer that is not JSON", again=True)
        if not isinstance(data, dict):
            return Failure(Kind.BROKEN, "an answer that is not a JSON object", again=True)
        return Reply(data)

    def _redacted(self, result: Failure | ServerError) -> Failure | ServerError:
        """A failure without the key, which a server may repeat."""
        key = self.connection.key
        if not key:
            return result
        if isinstance(result, ServerError):
            return ServerError(result.message.replace(key, "…"), hint=result.hint)
        return Failure(result.kind, result.text.replace(key, "…"), result.again, result.pause)

    def _note(self, result: Reply | Failure | ServerError, throttle: Throttle, begun: float) -> None:
        """Tells throttle and breaker what became of a request that was sent at the time ``begun``."""
        if isinstance(result, Failure) and result.kind in (Kind.DOWN, Kind.BROKEN, Kind.LATE):
            self.breaker.failed(result.text, begun)
            return
        self._last_answer = time.monotonic()
        self.breaker.answered()
        if isinstance(result, Failure) and result.kind is Kind.OVERLOADED:
            throttle.overloaded(result.pause)
        else:
            throttle.answered()

    # -- messages -----------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Prints a warning about the server."""
        print(f"warning: {self.connection.base_url}: {text}", file=sys.stderr)

    def _say_once(self, kind: str, text: str, count: int) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self.say(f"{count} requests have no answer ({kind}), for example: {one_text(text)}. Their scores are missing")


@dataclass
class _Asking:
    """What the requests of one call share: none can succeed any more; they may be sent again; it is a trial of a server that was down."""

    over: bool = False
    again: bool = True
    is_trial: bool = False


def close_later(http: httpx2.AsyncClient) -> None:
    """Closes connections whose client is gone, in the loop that they belong to."""
    asyncio.run_coroutine_threadsafe(http.aclose(), background_loop())


def usage(data: Any) -> tuple[int, int]:
    """Returns how many tokens a reply says that were read and written; 0 for what it does not say."""
    row = data.get("usage") if isinstance(data, dict) else None
    row = row if isinstance(row, dict) else {}

    def count(*names: str) -> int:
        return next((max(0, row[name]) for name in names if isinstance(row.get(name), int)), 0)

    return count("prompt_tokens", "input_tokens"), count("completion_tokens", "output_tokens")
