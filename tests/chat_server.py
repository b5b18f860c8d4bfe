"""A server with OpenAI's chat interface on loopback, for tests: what it answers is a function. And a proxy that makes faults."""

from __future__ import annotations

import json
import math
import socket
import ssl
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Body = Mapping[str, Any]
VERDICT = '{"description": "what is there", "reason": "it fits", "score": 6}'


def question_of(body: Body) -> str:
    """The text of a chat completion's message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def has_picture(body: Body) -> bool:
    content = body["messages"][-1]["content"]
    return not isinstance(content, str) and any(part["type"] == "image_url" for part in content)


def completion(text: str | None, **choice: Any) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    return {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}


def likely(probabilities: Mapping[str, float]) -> dict[str, Any]:
    """The ``logprobs`` of a choice."""
    rows = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in probabilities.items()]
    return {"content": [{**rows[0], "top_logprobs": rows}]}


def tokens_of(text: str) -> list[int]:
    """The tokens of a text: one for a letter, a digit, or a word in small letters, with or without a space before it."""
    word = text.removeprefix(" ")
    return [zlib.crc32(text.encode())] if len(word) == 1 or word.islower() else [zlib.crc32(letter.encode()) for letter in text]


@dataclass
class ChatServer:
    """Answers questions with ``answer(question, body)``: a text, or a whole completion.

    ``abilities`` are what it does: pictures, schema, logprobs, token_ids. A schema is obeyed with the first value that it allows.
    With ``token_ids`` it speaks vLLM's dialect: ``/tokenize``, and ``logprob_token_ids`` for exactly the tokens that are asked for.
    """

    answer: Callable[[str, Body], str | dict[str, Any]] = lambda question, body: VERDICT
    abilities: frozenset[str] = frozenset({"pictures", "schema", "logprobs"})
    models: tuple[str, ...] = ("tiny",)
    probabilities: Callable[[str, Body], Mapping[str, float]] = lambda question, body: {str(n): 0.1 for n in range(10)}
    bodies: list[Body] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    broken: Callable[[Body], bool] = lambda body: False  # questions that get a 500
    tokens_read: int = 100

    def reply(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path.endswith("/models"):
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        if path.endswith("/tokenize") and "token_ids" in self.abilities:
            return 200, {"tokens": tokens_of(body["prompt"]), "count": len(tokens_of(body["prompt"])), "max_model_len": 4096}
        if not path.endswith("/chat/completions"):
            return 404, {"error": {"message": f"no {path} here"}}
        if body["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist", "code": "model_not_found"}}
        self.bodies.append(body)
        if self.broken(body):
            return 500, {"error": {"message": "it always breaks here"}}
        question, reply = question_of(body), None
        seen = has_picture(body) and "pictures" in self.abilities
        if "response_format" in body and "schema" in self.abilities and "enum" in json.dumps(body["response_format"]):
            properties = body["response_format"]["json_schema"]["schema"]["properties"]
            reply = json.dumps({name: row["enum"][0] for name, row in properties.items()})
        reply = self.answer(question, body) if reply is None else reply
        made = completion(reply) if isinstance(reply, str) else dict(reply)
        if body.get("logprobs") and "logprobs" in self.abilities:
            made["choices"][0]["logprobs"] = likely(self.probabilities(question, body))
        if body.get("logprobs") and "logprob_token_ids" in body and "token_ids" in self.abilities:
            likely_here = self.probabilities(question, body)
            asked = {token: likely_here[token] for token in likely_here if tokens_of(token)[0] in body["logprob_token_ids"]}
            made["choices"][0]["logprobs"] = likely(asked)
        read = self.tokens_read + (85 if seen else 0)
        made.setdefault("usage", {"prompt_tokens": read, "completion_tokens": 10, "total_tokens": read + 10})
        return 200, made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *values: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.serve(self, None)

    def do_POST(self) -> None:
        self.server.serve(self, self.rfile.read(int(self.headers["Content-Length"])))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, serve: Callable[[_Handler, bytes | None], None], port: int = 0) -> None:
        self.serve = serve
        self.sockets: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.sockets.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, address: Any) -> None:
        pass  # a client that went away


@contextmanager
def listening(serve: Callable[[_Handler, bytes | None], None], *, port: int = 0, certificate: Path | None = None) -> Iterator[str]:
    """A server while the block runs; its address. All connections are cut when it ends."""
    server = _Server(serve, port)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        for connection in list(server.sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def send(handler: _Handler, status: int, data: Any, headers: Mapping[str, str] | None = None) -> None:
    """Sends a JSON value, or bytes as they are."""
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def serving(server: ChatServer, *, port: int = 0, certificate: Path | None = None) -> Iterator[str]:
    """A chat server while the block runs; its base URL."""

    def serve(handler: _Handler, content: bytes | None) -> None:
        server.headers.append(dict(handler.headers))
        status, data = server.reply(handler.command, handler.path, None if content is None else json.loads(content))
        send(handler, status, data)

    with listening(serve, port=port, certificate=certificate) as url:
        yield url


# -- faults -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of being passed on; after ``delay`` seconds. Without a status and a cut it is passed on.

    ``cut`` closes the connection: before an answer, or after half of the real one.
    """

    status: int | None = None
    data: Any = field(default_factory=lambda: {"error": {"message": "made by the proxy"}})
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: str | None = None


class FaultProxy:
    """Stands between client and server. ``faults`` are used up in order; then ``rule(number of the request)`` decides, if there is one.

    Only questions have faults, not the list of models.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removesuffix("/v1").removeprefix("http://")
        self.faults: deque[Fault] = deque()
        self.rule: Callable[[int], Fault | None] | None = None
        self.seen: Counter[str] = Counter()
        self.most_at_once, self.at_once, self._lock = 0, 0, threading.Lock()
        self.times: list[float] = []

    def _next(self, path: str) -> Fault:
        with self._lock:
            if path.endswith("/models"):
                return Fault()
            self.seen["questions"] += 1
            self.times.append(time.monotonic())
            if self.faults:
                return self.faults.popleft()
            return (self.rule(self.seen["questions"]) if self.rule else None) or Fault()

    def serve(self, handler: _Handler, content: bytes | None) -> None:
        fault = self._next(handler.path)
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(fault.delay)
            if fault.cut == "before":
                handler.close_connection = True
                handler.connection.shutdown(socket.SHUT_RDWR)
            elif fault.status is not None:
                send(handler, fault.status, fault.data, fault.headers)
            else:
                self._pass_on(handler, content, half=fault.cut == "half")
        finally:
            with self._lock:
                self.at_once -= 1

    def _pass_on(self, handler: _Handler, content: bytes | None, *, half: bool) -> None:
        connection = HTTPConnection(self.upstream, timeout=60)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() in ("authorization", "content-type")}
            connection.request(handler.command, handler.path, content, headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        handler.send_response(response.status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty(upstream: str) -> Iterator[tuple[str, FaultProxy]]:
    """A proxy in front of a server while the block runs: its base URL, and itself."""
    proxy = FaultProxy(upstream)
    with listening(proxy.serve) as url:
        yield url, proxy


def answers(port: int, path: str) -> bool:
    """True if a server on this machine answers a request for ``path`` with 200."""
    with suppress(OSError):
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        finally:
            connection.close()
    return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
