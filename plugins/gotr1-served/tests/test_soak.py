"""2,000 requests, 32 at once, with a tenth of faults: all are accounted for, and neither memory nor descriptors grow."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import psutil
import pytest
from chat_server import Fault, FaultProxy

from .conftest import KEY, make_judge, make_samples, missing

ROUNDS, ROUND = 20, 100
FAULTS = [Fault(500), Fault(429), Fault(cut="before"), Fault(cut="half"), Fault(200, b"no json"), Fault(400), Fault(delay=0.3)]


@pytest.mark.slow
def test_a_long_run_with_faults(proxy: FaultProxy, key: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = make_judge(proxy.url, key_env="SERVED_KEY", concurrency=32, deadline=60.0, patience=30.0)
    made.join_run(tmp_path, name="openai")
    chance, begun, process = random.Random(0), proxy.seen["questions"], psutil.Process()
    refused = 0

    def rule(number: int) -> Fault | None:
        nonlocal refused
        fault = chance.choice(FAULTS) if chance.random() < 0.1 else None
        refused += fault is not None and fault.status == 400
        return fault

    proxy.rule = rule
    half: tuple[int, int] = (0, 0)
    scores: list[float] = []
    for number in range(ROUNDS):
        scores += made.score(make_samples(ROUND), ["pi"])["pi"]
        gc.collect()
        if number == ROUNDS // 2:
            half = process.memory_info().rss, process.num_fds()
    assert len(scores) == ROUNDS * ROUND
    assert missing(scores) == refused  # everything else was answered in the end
    assert all(score == 0.6 for score in scores if score == score)
    assert made.counts()["unanswered"] == refused
    assert made.counts()["requests"] - 4 == proxy.seen["questions"] - begun  # 4 at the start
    assert process.memory_info().rss - half[0] < 32 * 2**20
    assert process.num_fds() - half[1] < 40
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
