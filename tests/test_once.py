"""A command checks a config once, asks each component's preflight once, and makes each component once in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

PLUGIN = Path(__file__).with_name("counting_plugin.py")
COMPONENTS = {"JanusPolicy", "Grpo", "ScenesJudge", "ScenesSource", "ScenesBenchmark"}
Counts = tuple[Counter[str], list[Counter[str]]]


@pytest.fixture
def counts(tmp_path: Path) -> Callable[..., Counts]:
    """Runs a command. Returns how often each event happened, in all processes together and in each process that made components."""

    def run(*arguments: str) -> Counts:
        file = tmp_path / "counts"
        file.unlink(missing_ok=True)
        environment = {**os.environ, "GOTR1_TEST_COUNTS": str(file), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "gotr1_core.cli.main", *arguments]
        ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        lines = [line.split() for line in file.read_text().splitlines()]
        by_process: dict[str, Counter[str]] = {}
        for process, what in lines:
            by_process.setdefault(process, Counter())[what] += 1
        made = [Counter({k: n for k, n in c.items() if k in COMPONENTS}) for c in by_process.values()]
        return Counter(what for _, what in lines), [c for c in made if c]

    return run


def train_words(model: Path) -> list[str]:
    return [
        *("train", "--preset", "scenes", "--plugin", str(PLUGIN), f"planner.model={model}", "lora=null", "steps=1", "groups=2", "plans=2"),
        *("sampling.max_chain_tokens=4", "prompts.held_out=2", "evaluation.prompts=2", "evaluation.greedy=false", "evaluation.best_of=0"),
    ]


ALL_OF_A_RUN = {"JanusPolicy": 1, "Grpo": 1, "ScenesJudge": 1, "ScenesSource": 1}


def test_train(counts: Callable[..., Counts], tiny_janus: Path) -> None:
    total, made = counts(*train_words(tiny_janus))
    assert (total["check"], total["preflight"]) == (1, 1)
    assert made == [ALL_OF_A_RUN]


def test_train_in_two_processes(counts: Callable[..., Counts], tiny_janus: Path) -> None:
    """The launcher checks, and makes nothing but the algorithm, which it tries on made-up rewards; its processes check nothing."""
    total, made = counts(*train_words(tiny_janus), "--cpu", "--", "--num-processes", "2")
    assert (total["check"], total["preflight"]) == (1, 1)
    assert sorted(made, key=len) == [{"Grpo": 1}, ALL_OF_A_RUN, ALL_OF_A_RUN]


def test_generate(counts: Callable[..., Counts], tiny_janus: Path) -> None:
    words = [f"planner.model={tiny_janus}", "sampling.max_chain_tokens=4", "--plugin", str(PLUGIN)]
    total, made = counts("generate", "a red circle", *words)
    assert (total["check"], total["preflight"]) == (0, 1)  # there is no reward and no step to check
    assert made == [{"JanusPolicy": 1}]


def test_evaluate(counts: Callable[..., Counts], tiny_janus: Path) -> None:
    words = [f"planner.model={tiny_janus}", "sampling.max_chain_tokens=4", "--plugin", str(PLUGIN)]
    total, made = counts("evaluate", "--count", "2", *words)
    assert (total["check"], total["preflight"]) == (0, 1)
    assert made[0]["JanusPolicy"] == made[0]["ScenesBenchmark"] == 1
    assert max(made[0].values()) == 1


def test_score(counts: Callable[..., Counts], tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (48, 48), "red").save(picture)
    total, made = counts("score", str(picture), "--prompt", "a red circle", "--judge", "scenes", "--plugin", str(PLUGIN))
    assert (total["check"], total["preflight"]) == (0, 0)  # the exact judge has no preflight
    assert made == [{"ScenesJudge": 1}]
