"""Measures how much of a rollout's judging is hidden behind drawing: a judge asks a server on loopback, which takes a second.

python benchmarks/overlap.py --chunks 8 --groups 8

The miniature of the embedded world draws. The judge asks the server about each sample, 32 questions at a time, and gets a number that
depends on the picture alone. The server sleeps, so judging needs none of the processor. Four rollouts of the same prompts are measured:
drawing alone, with a judge that answers at once; judging alone; both, one after the other, as for a judge in the process; and both at
once, as for a judge that is `thread_safe`. The last two must give the same rewards.

"pi" needs the picture. "sem * pi" needs the plan first, because a plan that scores 0 is not drawn. "sem * pi, no pruning" does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from gotr1_core import load_config
from gotr1_core.batch import Batch
from gotr1_core.components.build import make_policies
from gotr1_core.components.prompts import prompts_of
from gotr1_core.config.models import make_sampling
from gotr1_core.judges import Judges
from gotr1_core.plugins import Registry
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import IMAGE, PLAN, Sample, SegmentName

TOGETHER = 32
CASES = {"pi": ("pi", True), "sem * pi": ("sem * pi", True), "sem * pi, no pruning": ("sem * pi", False)}


class Handler(BaseHTTPRequestHandler):
    """Answers a number from 0.2 to 0.8 that depends on what was sent, after ``seconds``."""

    protocol_version = "HTTP/1.1"
    seconds = 1.0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.seconds)
        answer = json.dumps({"score": 0.2 + 0.6 * hashlib.sha256(body).digest()[0] / 255}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing of a request."""


@contextmanager
def serving(seconds: float) -> Iterator[str]:
    """A server on loopback that takes ``seconds`` for each request, and any number of them at the same time."""
    handler = type("Slow", (Handler,), {"seconds": seconds})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.request_queue_size = True, 128
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


class Judge:
    """Asks the server about every sample. Without an address it gives the same numbers at once."""

    rewards: Mapping[str, SegmentName] = {"sem": PLAN, "pi": IMAGE}

    def __init__(self, address: str | None, *, thread_safe: bool) -> None:
        self.address, self.thread_safe = address, thread_safe
        self.pool = ThreadPoolExecutor(TOGETHER)
        self.seconds = 0.0

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        begun = time.perf_counter()
        scores = {name: list(self.pool.map(lambda sample, name=name: self._ask(sample, name), samples)) for name in names}
        self.seconds += time.perf_counter() - begun
        return scores

    def _ask(self, sample: Sample, name: str) -> float:
        body = name.encode() + (sample.chain.raw.encode() if name == "sem" or sample.image is None else sample.image.tobytes())
        if self.address is None:
            return 0.2 + 0.6 * hashlib.sha256(body).digest()[0] / 255
        with urllib.request.urlopen(urllib.request.Request(self.address, data=body)) as reply:
            return float(json.load(reply)["score"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--groups", type=int, default=8, help="prompt groups in a chunk, of 4 plans each")
    parser.add_argument("--seconds", type=float, default=1.0, help="what the server takes")
    args = parser.parse_args()
    registry = Registry()
    config = load_config(preset="scenes", registry=registry)
    planner, renderer = make_policies(registry, config)
    source, _ = prompts_of(registry, config.prompts)
    prompts = source.prompts("train", args.chunks * args.groups, 0)

    def rollout(judge: Judge, reward: str, prune: bool) -> tuple[float, Batch]:
        settings = RolloutSettings(make_sampling(config.sampling), seed=(0,), plans=4, chunk=args.groups, prune=prune)
        begun = time.perf_counter()
        with torch.no_grad():
            batch = roll_out(planner, renderer, Judges({"slow": judge}, Expression.parse(reward)), prompts, settings)
        return time.perf_counter() - begun, batch

    rollout(Judge(None, thread_safe=False), "pi", True)  # once before anything is measured
    print("| reward | drawing | judging | one after the other | overlapped | of the larger |\n|---|---|---|---|---|---|", flush=True)
    with serving(args.seconds) as address:
        for name, (reward, prune) in CASES.items():
            drawing, _ = rollout(Judge(None, thread_safe=False), reward, prune)
            alone = Judge(address, thread_safe=False)
            after, expected = rollout(alone, reward, prune)
            overlapped, batch = rollout(Judge(address, thread_safe=True), reward, prune)
            assert torch.equal(batch.rewards, expected.rewards)
            times = [drawing, alone.seconds, after, overlapped]
            print(f"| {name} | {' | '.join(f'{seconds:.1f} s' for seconds in times)} | {overlapped / max(times[:2]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
