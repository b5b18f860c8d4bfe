"""Options of the judges and the planner behind a server."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gotr1_core.config.paths import Input
from gotr1_core.errors import UsageError
from gotr1_judges.options import QuestionOptions
from gotr1_served.pictures import FamilyName

OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
KEY_HINT = "export NAME=…, and say key_env=NAME"  # these errors are none of pydantic's, which would show the value
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
Amount = Annotated[float, Field(gt=0)]


class ServerOptions(BaseModel):
    """How a server is asked, and what may be spent."""

    changeable: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "key_env", "allow_plain_http", "concurrency", "timeout", "deadline", "patience", "tries"}
        | {"requests", "tokens", "dollars", "price_read", "price_written"}
    )
    """What may change when a run is resumed: it changes no score."""
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    base_url: str = Field(OPENAI, description="Address of the server's interface; it most often ends in /v1.")
    model: str | None = Field(None, min_length=1, description="The model's name on the server; the only one that it lists, if not given.")
    key_env: str | None = Field(
        None, description=f"Environment variable that has the key. If not given: {OPENAI_KEY} for api.openai.com, and no key for others."
    )
    allow_plain_http: bool = Field(False, description="Allow http:// to another machine: everybody on the way can read and change it.")
    concurrency: int = Field(16, gt=0, le=1024, description="Most requests at once. While the server says that there are too many, fewer.")
    timeout: float = Field(120.0, gt=0, le=3600, description="Seconds for one request.")
    deadline: float = Field(300.0, gt=0, le=3600, description="Seconds for one call: what is not answered by then is missing.")
    patience: float = Field(45.0, gt=0, le=3600, description="Seconds in which all requests may fail before the server counts as down.")
    tries: int = Field(6, gt=0, le=100, description="Most tries of a request that the server received and did not answer.")
    requests: int | None = Field(None, gt=0, description="Budget of the run in requests, tries included.")
    tokens: int | None = Field(None, gt=0, description="Budget of the run in tokens, read and written.")
    dollars: Amount | None = Field(None, description="Budget of the run in dollars. It needs prices.")
    price_read: float | None = Field(None, ge=0, description="Dollars for a million tokens that the model reads.")
    price_written: float | None = Field(None, ge=0, description="Dollars for a million tokens that the model writes.")
    temperature: float | None = Field(0.0, ge=0, le=2, description="Temperature of answers; null sends none, which some models want.")
    limit_key: Literal["max_tokens", "max_completion_tokens"] | None = Field(
        None, description="Name of the limit of an answer. If not given: max_completion_tokens for api.openai.com, max_tokens for others."
    )
    extra: dict[str, Any] = Field(
        {}, description="Other fields of every request, such as {reasoning_effort: none}. No secrets: it is saved."
    )

    @field_validator("key_env")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and (not _NAME.fullmatch(value) or value.startswith("sk_")):
            raise UsageError("key_env is the name of an environment variable, never the key itself", hint=KEY_HINT)
        return value

    @model_validator(mode="after")
    def _check(self) -> ServerOptions:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("base_url is an address such as http://localhost:8000/v1")
        if url.username or url.password or url.query or url.fragment:
            raise UsageError("base_url has a user, password, query or fragment: a key comes from the environment", hint=KEY_HINT)
        if url.scheme == "http" and not self.allow_plain_http and not is_loopback(url.hostname):
            raise ValueError("base_url is http:// to another machine: use https://, or set allow_plain_http=true")
        if self.patience > self.deadline:
            raise ValueError("patience is longer than deadline, so the server would never count as down")
        if self.dollars is not None and self.price_read is None and self.price_written is None:
            raise ValueError("dollars needs prices: set price_read and price_written, in dollars for a million tokens")
        if taken := sorted({"model", "messages", "logprobs", "stream", "n"} & self.extra.keys()):
            raise ValueError(f"extra cannot set {taken[0]}")
        return self

    @property
    def key_name(self) -> str | None:
        """The environment variable that has the key, or None if no key is sent."""
        return self.key_env or (OPENAI_KEY if is_openai(self.base_url) else None)


class OpenAIJudgeOptions(ServerOptions, QuestionOptions):
    """Options of the judge ``openai``."""

    family: FamilyName | None = Field(
        None, description="Family of the model, which decides how boxes are asked for and read; from the model's name if not given."
    )
    side: int = Field(768, ge=28, le=4096, description="Longer side in pixels of pictures that are sent; larger ones are shrunk.")
    detail: Literal["low", "high", "auto"] | None = Field(None, description="OpenAI's detail of pictures; null sends none.")
    without_probabilities: Literal["stop", "text"] = Field(
        "stop", description="If scoring=expected and the server gives no probabilities: stop, or score written verdicts in the whole run."
    )


class Gpt4oJudgeOptions(OpenAIJudgeOptions):
    """Options of the judge ``gpt-4o``. The prices are OpenAI's list prices of gpt-4o-2024-08-06 and later; look if they still hold."""

    model: str | None = Field("gpt-4o-2024-11-20", min_length=1, description="The model's name.")
    detail: Literal["low", "high", "auto"] | None = Field("high", description="OpenAI's detail of pictures.")
    price_read: float | None = Field(2.5, ge=0, description="Dollars for a million tokens that the model reads.")
    price_written: float | None = Field(10.0, ge=0, description="Dollars for a million tokens that the model writes.")


class OpenAIPlannerOptions(ServerOptions):
    """Options of the planner ``openai``."""

    instruction: Annotated[str, Input(unless=lambda text, _: text == "v1")] = Field(
        "v1", description="The message to the model: a version of the package, or a file that has {prompt} once."
    )


def is_loopback(host: str) -> bool:
    """True if a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_openai(base_url: str) -> bool:
    """True if an address is OpenAI's own, reached securely."""
    url = urlsplit(base_url)
    return url.scheme == "https" and url.hostname == "api.openai.com"
