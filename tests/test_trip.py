"""The trip of one prompt in docs/design.md is the trip that a real step takes."""

from __future__ import annotations

import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from accelerate import Accelerator

from gotr1_core.cli.main import call

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"^\d+\. `(?P<file>[\w/.-]+)`, `(?P<function>[\w.]+)`: ")


class Arrived(BaseException):
    """Raised when the first gradient is due. It is not an `Exception`, so that no handler on the way catches it."""


def documented() -> list[tuple[str, str]]:
    section = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## One prompt's trip")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\d+\. ", line)]
    matches = [LINE.match(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return [(match["file"], match["function"]) for match in matches if match]


def test_it_changes_file_at_most_30_times() -> None:
    files = [file for file, _ in documented()]
    assert len(files) > 15
    assert sum(a != b for a, b in pairwise(files)) <= 30


def test_a_step_takes_it(tiny_janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        del arg
        if event == "call":
            calls.append((os.path.relpath(frame.f_code.co_filename, ROOT), frame.f_code.co_qualname))

    def arrive(*args: Any, **kwargs: Any) -> None:
        raise Arrived

    monkeypatch.setattr(Accelerator, "backward", arrive)
    words = [f"planner.model={tiny_janus}", "lora=null", "steps=1", "groups=1", "plans=4", f"output={tmp_path}"]
    words += [
        "sampling.max_chain_tokens=4",
        "prompts.held_out=1",
        "evaluation.prompts=1",
        "evaluation.greedy=false",
        "evaluation.best_of=0",
    ]
    words += ["reward=pi + sem", "segments.plan.kl=0.01"]  # random weights: a step that has a gradient, whatever was drawn
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        with pytest.raises(Arrived):
            call(["train", "--preset", "scenes", "--cpu", "--debug", *words])
    finally:
        sys.setprofile(before)
    trip = documented()
    position = -1
    for place in trip:
        later = [i for i, seen in enumerate(calls) if i > position and seen == place]
        assert later, f"{place} is not called after {trip[max(0, trip.index(place) - 1)]}"
        position = later[0]
