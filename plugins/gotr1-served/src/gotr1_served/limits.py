"""How many requests are under way, when to try again, and when to stop asking a server that is down."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

FIRST_DELAY, LONGEST_DELAY = 0.5, 8.0  # seconds


_chance = random.SystemRandom()


def backoff(tries: int) -> float:
    """Returns the seconds to wait after ``tries`` tries: doubled with each of them, with jitter. The run's own generators are not used."""
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (tries - 1)) * (0.5 + 0.5 * _chance.random())


class Throttle:
    """Limits the requests that are under way.

    The limit is halved when the server says that there are too many (429), at most once a second. It grows by one for each round of
    requests that were answered, up to ``most``.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.limit, self.active = most, float(most), 0
        self.resume_at = 0.0
        self._clock, self._next_cut = clock, 0.0
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Waits until another request may be sent, and counts it as under way inside the block."""
        async with self._freed:
            await self._freed.wait_for(lambda: self.active < max(1, int(self.limit)))
            self.active += 1
        try:
            while (pause := self.resume_at - self._clock()) > 0:
                await asyncio.sleep(pause)
            yield
        finally:
            self.active -= 1
            async with self._freed:
                self._freed.notify_all()

    def overloaded(self, pause: float | None) -> None:
        """The server said that there are too many requests. ``pause`` are the seconds that it asked for; nobody asks before they passed."""
        now = self._clock()
        if pause is not None:
            self.resume_at = max(self.resume_at, now + pause)
        if now >= self._next_cut:
            self.limit, self._next_cut = max(1.0, self.limit / 2), now + 1.0

    def answered(self) -> None:
        """A request was answered."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)


class Breaker:
    """Stops asking a server that is down: when all requests have failed for ``patience`` seconds.

    ``say`` gets one message when it opens, and one when the server answers again. ``broken_since`` is when the first request was sent
    that failed after the last answer.
    """

    def __init__(self, patience: float, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.patience, self._say, self._clock = patience, say, clock
        self.open = False
        self.failures, self.broken_since = 0, 0.0

    def answered(self) -> None:
        """The server answered, with whatever it was that shows that it works."""
        if self.open:
            self._say(f"it answers again, after {self._clock() - self.broken_since:.0f} s")
        self.open, self.failures = False, 0

    def failed(self, why: str, begun: float) -> None:
        """A request that was sent at the time ``begun`` failed in a way in which requests to a server that is down would fail."""
        if not self.failures:
            self.broken_since = begun
        self.failures += 1
        seconds = self._clock() - self.broken_since
        if not self.open and seconds >= self.patience:
            self.open = True
            self._say(f"no request of the last {seconds:.0f} s was answered ({why}). It is asked no more until it answers")
