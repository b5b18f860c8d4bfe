"""The live view of a run: step, rewards with their trend, time left. Plain lines where there is no terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from gotr1_core.evaluation import summary
from gotr1_core.hookspecs import hookimpl
from gotr1_core.samples import Sample
from gotr1_core.tracking import null_for_nan

BARS = "▁▂▃▄▅▆▇█"
PHASES = ("rollout", "scoring", "update")


def trend(values: list[float], width: int = 30) -> str:
    """A sparkline of the last values, scaled to their own range."""
    shown = [v for v in values[-width:] if v == v]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    return "".join(BARS[int((v - low) / (high - low or 1) * (len(BARS) - 1))] for v in shown)


class View:
    """A listener that shows a run: enter it, and register it with the run."""

    def __init__(self, console: Console, steps: int, *, live: bool) -> None:
        self.console = console
        self.history: dict[str, list[float]] = {}
        self.held_out: list[tuple[int, str, Mapping[str, float]]] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.task = self.progress.add_task("loading", total=steps)
        self.live = Live(self.progress, console=console, refresh_per_second=4) if live else None

    def __enter__(self) -> View:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    @hookimpl
    def gotr1_run_started(self, run: Path, step: int) -> None:
        self.progress.update(self.task, completed=step, description=f"{run}: evaluating")
        self._show({"run": str(run), "step": step})

    @hookimpl
    def gotr1_step_finished(self, run: Path, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)
        self.progress.update(self.task, completed=step, description=f"{run}: training")
        shown = {k: round(v, 4) for k, v in metrics.items() if k in ("reward", "seconds") or k.startswith("reward.")}
        self._show({"step": step, **shown})

    @hookimpl
    def gotr1_evaluated(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        means = {score: value.mean for score, value in summary(samples).items()}
        self.held_out.append((step, name, means))
        self._show({"step": step, "evaluation": name, **{k: round(v, 4) for k, v in means.items()}})

    @hookimpl
    def gotr1_checkpoint_saved(self, step: int, checkpoint: Path) -> None:
        self._show({"step": step, "checkpoint": str(checkpoint)})

    def _show(self, row: Mapping[str, Any]) -> None:
        """The table where there is a terminal; else the event as a line of JSON."""
        if self.live:
            self.live.update(Group(self._rewards(), self.progress))
        else:
            print(json.dumps({k: null_for_nan(v) for k, v in row.items()}), file=self.console.file, flush=True)

    def _rewards(self) -> Table:
        table = Table("", "now", "trend", box=None)
        for name in sorted(n for n in self.history if n.startswith("reward") and n != "reward_deviation"):
            table.add_row(name, f"{self.history[name][-1]:.3f}", trend(self.history[name]))
        for name in ("plan.deviation", "image.deviation", "gradient_norm"):
            if name in self.history:
                table.add_row(name, f"{self.history[name][-1]:.2g}", trend(self.history[name]))
        if "seconds" in self.history:
            phases = ", ".join(f"{p} {self.history[f'seconds.{p}'][-1]:.2f} s" for p in PHASES if f"seconds.{p}" in self.history)
            table.add_row("step", f"{self.history['seconds'][-1]:.2f} s", phases)
        for step, name, means in self.held_out[-4:]:
            shown = ", ".join(f"{n} {v:.3f}" for n, v in means.items())
            table.add_row(f"{name}, step {step}", "", shown)
        return table
