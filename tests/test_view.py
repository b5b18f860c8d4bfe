"""The live view, on a recorded terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from gotr1_core.chain import parse
from gotr1_core.cli.view import View, trend
from gotr1_core.samples import Prompt, Sample

METRICS = {"reward": 0.5, "reward.pi": 0.25, "plan.sampler_gap": 1e-7, "seconds": 2.0, "seconds.rollout": 1.5, "seconds.update": 0.5}
SAMPLE = Sample(Prompt("a"), parse(""), None, scores={"pi": 0.75}, reward=0.5)


def shown(*, live: bool) -> str:
    """The terminal output of a run of two steps."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=live, width=120)
    run = Path("runs/mine")
    with View(console, 2, live=live) as view:
        view.gotr1_run_started(run=run, step=0)
        view.gotr1_evaluated(step=0, name="before", samples=[SAMPLE])
        for step in (1, 2):
            view.gotr1_step_finished(run=run, step=step, metrics=METRICS | {"reward": 0.25 + step / 4})
        view.gotr1_checkpoint_saved(step=2, checkpoint=run / "checkpoints" / "step-000002")
    return file.getvalue()


def test_on_a_terminal_rewards_phases_and_progress_are_shown() -> None:
    text = shown(live=True)
    for part in (
        "runs/mine: training",
        "2/2",
        "reward.pi",
        "0.750",
        "▁█",
        "rollout 1.50 s",
        "update 0.50 s",
        "before, step 0",
        "pi 0.750",
    ):
        assert part in text, part


def test_elsewhere_a_line_of_json_an_event() -> None:
    rows = [json.loads(line) for line in shown(live=False).splitlines()]
    assert rows == [
        {"run": "runs/mine", "step": 0},
        {"step": 0, "evaluation": "before", "reward": 0.5, "pi": 0.75},
        {"step": 1, "reward": 0.5, "reward.pi": 0.25, "seconds": 2.0},
        {"step": 2, "reward": 0.75, "reward.pi": 0.25, "seconds": 2.0},
        {"step": 2, "checkpoint": "runs/mine/checkpoints/step-000002"},
    ]


def test_a_trend_is_scaled_to_its_own_range() -> None:
    assert trend([0.0, 0.5, 1.0]) == "▁▄█"
    assert trend([2.0, 2.0]) == "▁▁"
    assert trend([float("nan")]) == ""
    assert len(trend([float(i) for i in range(100)])) == 30
