"""Serves the small InternVL that ships with gotr1-scenes with OpenAI's chat interface, for tests: ``python internvl_server.py PORT``.

Written answers are greedy. With ``logprobs`` it gives the probabilities of the digits, yes and no.
"""

from __future__ import annotations

import base64
import io
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chat_server import answers, completion, free_port, listening, question_of, send

NAME = "small-internvl"


def main(port: int) -> None:
    import torch
    from PIL import Image

    import gotr1_scenes
    from gotr1_judges.asking import Question
    from gotr1_judges.checkpoint import load_answerer
    from gotr1_judges.families import INTERN
    from gotr1_judges.options import InternJudgeOptions

    torch.set_num_threads(1)
    weights = Path(gotr1_scenes.__file__).parent / "weights" / "internvl"
    _, model = load_answerer(InternJudgeOptions(model=str(weights), answer_tokens=192), INTERN, device="cpu")
    lock, words = threading.Lock(), [*"0123456789", "yes", "no"]

    def reply(body: Any) -> dict[str, Any]:
        url = next((p["image_url"]["url"] for p in body["messages"][-1]["content"] if isinstance(p, dict) and p["type"] == "image_url"), "")
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) if url else None
        question = Question((question_of(body),), image)
        with lock:
            if not body.get("logprobs"):
                return completion(model.answer([question])[0])
            (found,) = model.word_probabilities([question], words)
        assert isinstance(found, list)
        rows = [{"token": word, "logprob": math.log(p), "bytes": None} for word, p in zip(words, found, strict=True) if p > 0]
        return completion("0", logprobs={"content": [{**rows[0], "top_logprobs": rows}]}, finish_reason="length")

    def serve(handler: Any, content: bytes | None) -> None:
        if content is None:
            return send(handler, 200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})
        body = json.loads(content)
        length = 40 + 4 * ("image_url" in json.dumps(body["messages"])) + len(question_of(body)) // 3
        send(handler, 200, {**reply(body), "usage": {"prompt_tokens": length, "completion_tokens": 1}})

    with listening(serve, port=port):
        threading.Event().wait()


class ServerProcess:
    """The server in a process of its own, always at the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, str(self.port)])
        while wait and not answers(self.port, "/v1/models"):
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def internvl_server() -> Iterator[ServerProcess]:
    """The server while the block runs."""
    server = ServerProcess()
    server.start()
    try:
        yield server
    finally:
        server.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
