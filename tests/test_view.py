"""The live view, on a recorded terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gotr1_core.chain import parse
from gotr1_core.cli.terminal import EscapingConsole
from gotr1_core.cli.view import View, trend
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.samples import Prompt, Sample

METRICS = {"reward": 0.5, "reward.pi": 0.25, "plan.sampler_gap": 1e-7, "seconds": 2.0, "seconds.rollout": 1.5, "seconds.update": 0.5}
SAMPLE = Sample(Prompt("a"), parse(""), None, scores={"pi": 0.75}, reward=0.5)


CONFIG: dict[str, Any] = {"planner": "a", "renderer": "a", "judge": "b", "evaluation": {"every": 2, "prompts": 3}}
CONFIG = validate(RunConfig, CONFIG).model_dump(mode="json")


class Clock:
    """A clock that a test moves, for a console and its progress bar."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def evaluate(view: View, clock: Clock, step: int, name: str, count: int, seconds: float) -> None:
    """An evaluation as the view hears of it, in two halves."""
    run = Path("runs/mine")
    for done in (0, count // 2, count):
        view.gotr1_evaluating(run=run, step=step, name=name, total=count, samples=[SAMPLE] * done)
        clock.wait(seconds / 2 if done < count else 0)
    view.gotr1_evaluated(run=run, step=step, name=name, samples=[SAMPLE] * count)


def shown(clock: Clock, *, live: bool) -> str:
    """The terminal output of a run of two steps of 2 s. The evaluation of 10 held-out prompts takes 5 s."""
    file = io.StringIO()
    console = EscapingConsole(file=file, force_terminal=live, width=120, get_time=clock)
    run = Path("runs/mine")
    with View(console, 2, live=live) as view:
        view.gotr1_run_started(run=run, config=CONFIG, step=0)
        evaluate(view, clock, 0, "before", 10, 5)
        for step in (1, 2):
            clock.wait(2)
            view.gotr1_step_finished(run=run, step=step, metrics=METRICS | {"reward": 0.25 + step / 4})
        view.gotr1_checkpoint_saved(step=2, checkpoint=run / "checkpoints" / "step-000002")
    return file.getvalue()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_on_a_terminal_rewards_phases_and_progress_are_shown(clock: Clock) -> None:
    text = shown(clock, live=True)
    for part in (
        "runs/mine: training",
        "2/2",
        "reward.pi",
        "0.750",
        "▁█",
        "rollout 1.50 s",
        "update 0.50 s",
        "before, step 0",
        "5/10",
        "pi 0.750",
        "-:--:-- left",
        "0:00:07 left",
    ):
        assert part in text, part


def test_a_terminal_without_unicode_gets_trends_in_ascii() -> None:
    console = EscapingConsole(file=io.TextIOWrapper(io.BytesIO(), encoding="cp1252"), force_terminal=True, width=120)
    with View(console, 2, live=True) as view:
        for step in (1, 2):
            view.gotr1_step_finished(run=Path("a"), step=step, metrics={"reward": step / 4})
    console.file.flush()
    assert b"_#" in console.file.buffer.getvalue()  # type: ignore[attr-defined]


def test_what_judges_count_is_shown() -> None:
    file = io.StringIO()
    with View(EscapingConsole(file=file, force_terminal=True, width=120), 2, live=True) as view:
        counts = {"judge.a.cache_asked": 8.0, "judge.a.cache_hits": 6.0, "judge.a.requests": 1234.0}
        view.gotr1_step_finished(run=Path("a"), step=1, metrics={"reward": 0.5, **counts})
    text = file.getvalue()
    for part in ("judge.a.cache_hits", "75% of the scores", "judge.a.requests", "1,234"):
        assert part in text, part


def test_elsewhere_a_line_of_json_an_event(clock: Clock) -> None:
    rows = [json.loads(line) for line in shown(clock, live=False).splitlines()]
    assert rows == [
        {"run": "runs/mine", "step": 0},
        {"step": 0, "evaluation": "before", "reward": 0.5, "pi": 0.75},
        {"step": 1, "reward": 0.5, "reward.pi": 0.25, "seconds": 2.0, "seconds_left": 7},
        {"step": 2, "reward": 0.75, "reward.pi": 0.25, "seconds": 2.0, "seconds_left": 5},
        {"step": 2, "checkpoint": "runs/mine/checkpoints/step-000002"},
    ]


def test_a_trend_is_scaled_to_its_own_range() -> None:
    assert trend([0.0, 0.5, 1.0]) == "▁▄█"
    assert trend([2.0, 2.0]) == "▁▁"
    assert trend([float("nan")]) == ""
    assert len(trend([float(i) for i in range(100)])) == 30


# -- the time left ----------------------------------------------------------------------------------------------------------


def view_of(clock: Clock, steps: int) -> View:
    return View(EscapingConsole(file=io.StringIO(), get_time=clock), steps, live=False)


def left(view: View, clock: Clock) -> float | None:
    ends = view.time_left.ends()
    return None if ends is None else ends - clock.now


def test_the_time_left_counts_steps_and_evaluations(clock: Clock) -> None:
    """Steps of 2 s, evaluations of half a second a prompt: 3 prompts after steps 2 and 4, 10 after step 5."""
    view = view_of(clock, 5)
    view.gotr1_run_started(run=Path("a"), config=CONFIG, step=0)
    evaluate(view, clock, 0, "before", 10, 5)
    evaluate(view, clock, 0, "before, best of 4", 10, 20)  # tells nothing of evaluations to come
    assert left(view, clock) is None
    found = []
    for step in range(1, 6):
        clock.wait(2)
        view.gotr1_step_finished(run=Path("a"), step=step, metrics={})
        found.append(left(view, clock))
        if step % 2 == 0 and step < 5:
            evaluate(view, clock, step, "held-out", 3, 1.5)
            found.append(left(view, clock))
    assert found == pytest.approx([8 + 3 + 5, 6 + 3 + 5, 6 + 1.5 + 5, 4 + 1.5 + 5, 2 + 1.5 + 5, 2 + 5, 5])
    evaluate(view, clock, 5, "after", 10, 5)
    assert left(view, clock) == pytest.approx(0)


def test_the_time_left_follows_the_last_twenty_steps(clock: Clock) -> None:
    view = view_of(clock, 100)
    view.gotr1_run_started(run=Path("a"), config=CONFIG | {"evaluation": {"every": 0, "prompts": 3}}, step=0)
    for step in range(1, 51):
        clock.wait(1 if step <= 30 else 3)
        view.gotr1_step_finished(run=Path("a"), step=step, metrics={})
    assert left(view, clock) == pytest.approx(
        50 * 3 + 3 * 3 / 128
    )  # and the last evaluation: 3 prompts, for each as long as for one of 128 samples


def test_before_its_first_evaluation_a_resumed_run_takes_a_prompt_for_a_sample(clock: Clock) -> None:
    """A step has 8 x 16 samples and takes 64 s: half a second each. 3 prompts are to be evaluated after step 8, and 3 at the end."""
    view = view_of(clock, 10)
    view.gotr1_run_started(run=Path("a"), config=CONFIG, step=6)
    clock.wait(64)
    view.gotr1_step_finished(run=Path("a"), step=7, metrics={})
    assert left(view, clock) == pytest.approx(3 * 64 + 3 * 0.5 + 3 * 0.5)


def test_on_a_real_terminal_evaluations_and_time_left_are_live(tmp_path: Path) -> None:
    words = ["steps=2", "groups=2", "plans=2", "prompts.held_out=6", "evaluation.every=0", "evaluation.prompts=2", "evaluation.batch=2"]
    ours, theirs = pty.openpty()
    os.set_blocking(ours, True)
    command = [sys.executable, "-m", "gotr1_core.cli.main", "train", *words, f"output={tmp_path}", "name=run", "--cpu"]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, env=os.environ | {"COLUMNS": "160"})
    os.close(theirs)
    text = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        text += chunk
    os.close(ours)
    assert process.wait() == 0
    plain = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", text.decode())
    for part in ("run: evaluating", "before, step 0", "0/6", "2/6", "4/6", "run: training", "after, step 2"):
        assert part in plain, part
    first = plain.index("1/2")
    assert re.search(r"0:0\d:\d\d left", plain[first:])
    assert "-:--:-- left" in plain[:first]
