"""What can become of a request: a reply, a failure of this one request, or a failure of all."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

import openai

from gotr1_core.engine.interrupts import Paused

AGAIN = frozenset({408, 409, 429})
"""Statuses below 500 after which the same request may succeed."""
FOR_ALL = frozenset({401, 402, 403, 404})
"""Statuses that every other request would get too."""
LONGEST_TEXT = 300


class Kind(Enum):
    """Why a request has no reply. The value is for people, and names the failure in counts."""

    DOWN = "not reached"
    BROKEN = "broken answer"
    OVERLOADED = "too many requests"
    REFUSED = "refused"
    LATE = "not in time"
    STOPPED = "not asked"


@dataclass(frozen=True)
class Reply:
    """A reply: the JSON object that the server sent."""

    data: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """No reply.

    Attributes:
        kind: why.
        text: what the server or the connection said, in one line and without keys.
        again: the same request may succeed later.
        pause: seconds after which the server wants to be asked again, if it says so.
    """

    kind: Kind
    text: str
    again: bool = False
    pause: float | None = None


class ServerError(Paused):
    """No request to a server can succeed: it refuses the key, has no such model, redirects, or shows a wrong certificate."""


def failure_of(error: Exception, where: str) -> Failure | ServerError:
    """Returns what an exception of the SDK means. ``where`` is the server's address, for messages."""
    if isinstance(error, openai.APIStatusError):
        return _status_failure(error, where)
    cause = error.__cause__ or error
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Failure(Kind.LATE, "no answer in time", again=True)
    if is_wrong_certificate(cause):
        hint = "use the name that the certificate is for, or let SSL_CERT_FILE name the authority's certificate"
        return ServerError(f"{where} shows a certificate that is not trusted: {one_text(cause)}", hint=hint)
    return Failure(Kind.DOWN, one_text(cause), again=True)


def _status_failure(error: openai.APIStatusError, where: str) -> Failure | ServerError:
    status, text = error.status_code, _said(error)
    if 300 <= status < 400:
        target = one_text(error.response.headers.get("location", "nowhere"))
        hint = "no redirect is followed, because the key would go along: give the right address as base_url"
        return ServerError(f"{where} redirects to {target}", hint=hint)
    if status == 429 and "insufficient_quota" in (str(error.code), str(error.type)):
        return ServerError(f"{where}: no credit is left: {text}", hint="add credit to the account; then resume")
    if status in FOR_ALL:
        return ServerError(f"{where} answers {status}: {text}", hint=HINTS[status])
    if status in AGAIN or status >= 500:
        kind = Kind.OVERLOADED if status == 429 else Kind.BROKEN
        return Failure(kind, f"{status} {text}", again=True, pause=retry_after(error.response.headers))
    return Failure(Kind.REFUSED, f"{status} {text}")


HINTS = {
    401: "set the environment variable that key_env names to a valid key",
    402: "add credit to the account; then resume",
    403: "the key may not use this model: ask for access, or choose another model",
    404: "look at base_url, which most often ends in /v1, and at the model's name",
}


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Returns the seconds that a response asks to wait, or None. The header has seconds or a date (RFC 9110, 10.2.3)."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            return min(max(0.0, float(text) * scale), 86_400.0)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now))
        except (ValueError, TypeError):
            pass
    return None


def is_wrong_certificate(error: BaseException | None) -> bool:
    """True if an exception, or one of its causes, is about a certificate."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _said(error: openai.APIStatusError) -> str:
    """What the body of an error says, whatever its form: OpenAI's, FastAPI's ``detail``, or text."""
    body: Any = error.body
    for key in ("error", "message", "detail"):
        if isinstance(body, Mapping) and body.get(key):
            body = body[key]
    return one_text(body if isinstance(body, str) else error.response.text or error.response.reason_phrase)


def one_text(value: object) -> str:
    """Returns a text, or what an exception says, in one line that is not too long."""
    text = str(value) or type(value).__name__
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}…"
