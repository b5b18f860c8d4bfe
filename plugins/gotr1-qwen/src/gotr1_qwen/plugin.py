"""Registers what gotr1-qwen provides: the planners ``qwen`` and ``file``."""

from __future__ import annotations

from collections.abc import Iterator

from gotr1_core.hookspecs import Component, hookimpl


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component(
        "planner",
        "qwen",
        "gotr1_qwen.planner:QwenPlanner",
        "gotr1_qwen.options:QwenOptions",
        "Qwen2.5-VL, Qwen3-VL, Qwen2.5 or Qwen3 writes the chain",
    )
    yield Component(
        "planner", "file", "gotr1_qwen.file:FilePlanner", "gotr1_qwen.options:FileOptions", "chains from a JSONL file; nothing to train"
    )
