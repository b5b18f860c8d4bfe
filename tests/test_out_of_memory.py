"""Running out of memory: a real allocation fails, and the error says what would fit."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gotr1_core.config.models import RunConfig
from gotr1_core.engine.out_of_memory import (
    GB,
    MemoryUsage,
    explain_out_of_memory,
    is_out_of_memory,
    largest_fitting,
    memory_usage,
    out_of_memory_error,
)
from gotr1_core.errors import Gotr1Error
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import complete_checkpoints

Make = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("used", "asked", "expected"),
    [
        (3e9, 3e9, 10),  # 16 needed 5 more where 3 are free: 9.6
        (3e9, 11e9, 3),
        (3e9, 1e15, 1),  # never none
        (1e9, 0, 8),  # nothing known: half
        (3e9, 0, 8),  # it would have fitted, so memory is in pieces: half
    ],
)
def test_what_would_fit(used: float, asked: float, expected: int) -> None:
    """1 of 4 GB was in use before the phase. The rest grows in proportion to the size."""
    before, now = MemoryUsage(1e9, 4e9), MemoryUsage(used, 4e9)
    assert largest_fitting(16, before, now, asked) == pytest.approx(expected, abs=1)
    assert largest_fitting(16, before, now, asked) < 16


def test_what_would_fit_is_smaller() -> None:
    assert largest_fitting(2, MemoryUsage(0, 100), MemoryUsage(99, 100), 2) == 1
    assert largest_fitting(16, MemoryUsage(5, 4), MemoryUsage(6, 4), 1) == 8  # more in use than there is, as addresses may be


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
            ),
            True,
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_other_errors_stay_what_they_are(make: Make, error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
    with pytest.raises(Gotr1Error if expected else type(error)), explain_out_of_memory("rollout", make()):
        raise error


@pytest.mark.parametrize(
    ("phase", "message", "parts", "hints"),
    [
        (
            "rollout",
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …",
            ["3 groups of 4 plans x 1 images", "2.68 GB more were requested"],  # of 8 that fit into a chunk there are 3
            ["rollout_groups=1 would fit by estimate", "sampling.max_chain_tokens=4"],
        ),
        ("forward", "", ["8 plans with 1 images each"], ["micro_batch=5 ", "gradient_checkpointing=true", "lora={rank: 32}"]),
        ("update", "", ["8 plans with 1 images each"], ["micro_batch=5 ", "gradient_checkpointing=true", "lora={rank: 32}", "shard=true"]),
        ("evaluation", "", ["6 prompts"], ["evaluation.batch=4 ", "sampling.max_chain_tokens=4"]),
        ("loading", "", ["the weights"], ["lora={rank: 32} instead of full weights", "planner.dtype=bfloat16"]),
    ],
)
def test_phase_sizes_and_settings_are_said(make: Make, phase: str, message: str, parts: list[str], hints: list[str]) -> None:
    error = out_of_memory_error(phase, make(), MemoryUsage(1 * GB, 6 * GB), MemoryUsage(8.5 * GB, 6 * GB), message)
    assert error.code == 1
    assert f"out of memory in phase {phase!r}" in error.message
    assert "chains of up to 8 tokens; 8.50 of 6.00 GB in use" in error.message
    assert all(part in error.message for part in parts), error.message
    assert error.hint is not None
    assert all(hint in error.hint for hint in hints), error.hint


def test_one_of_everything_still_has_a_hint(make: Make) -> None:
    nothing = MemoryUsage(0, 1)
    assert "plans=2 or sampling" in str(out_of_memory_error("rollout", make(groups=1), nothing, nothing, "").hint)
    lean = make(micro_batch=1, gradient_checkpointing=True, lora={"rank": 2}, sampling={"max_chain_tokens": 1})
    assert out_of_memory_error("update", lean, nothing, nothing, "").hint == "sampling.max_chain_tokens=1"


@contextmanager
def room(size: int) -> Iterator[None]:
    """Limits the address space to so many bytes more than are in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_usage_is_of_what_is_limited() -> None:
    free = memory_usage()
    assert 0 < free.used < free.total
    with room(1 << 30):
        limited = memory_usage()
    assert limited.total - limited.used == pytest.approx(1 << 30, rel=0.1)


def test_a_run_that_does_not_fit(make: Make, tmp_path: Path) -> None:
    """A rollout of 2,048 samples, with 32 MB of memory left."""
    settings: dict[str, Any] = {"groups": 128, "plans": 16, "rollout_groups": 128, "evaluation": {"every": 0}, "save_samples": 0}
    config = make(**settings, output=str(tmp_path), name="run")
    # A fixed threshold gives freed blocks back to the system at once, so that none of them serves the rollout.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    driver = [sys.executable, str(Path(__file__).with_name("memory_driver.py")), config.model_dump_json()]
    ended = subprocess.run(driver, env=environment, capture_output=True, text=True, check=True)
    heard = json.loads(ended.stdout.splitlines()[-1])
    assert heard["outcome"] == "failed"
    assert "out of memory in phase 'rollout': 128 groups of 16 plans x 1 images" in heard["message"]
    assert re.search(r"[\d.]+ of [\d.]+ GB in use, 0\.\d+ GB more were requested", heard["message"])
    found = re.match(r"rollout_groups=(\d+) would fit by estimate or ", heard["hint"])
    assert found is not None
    assert 1 <= int(found[1]) < 128
    assert complete_checkpoints(tmp_path / "run") == {}


def test_weights_that_do_not_fit(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")  # as mapping a file of weights says it

    monkeypatch.setattr("gotr1_janus.policy.JanusPolicy.__init__", full)
    with pytest.raises(Gotr1Error, match="out of memory in phase 'loading': the weights"):
        start.train(make(output=str(tmp_path), name="run"), cpu=True)
    assert list(tmp_path.iterdir()) == []
