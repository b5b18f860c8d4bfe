"""The live view of a run: step, rewards with their trend, time left. Plain lines where there is no terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from gotr1_core.config import RunConfig
from gotr1_core.evaluate import summary

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
    """Shows what :func:`gotr1_core.train.train` reports."""

    def __init__(self, console: Console, config: RunConfig, folder: Path, *, live: bool) -> None:
        self.console, self.config, self.folder = console, config, folder
        self.history: dict[str, list[float]] = {}
        self.held_out: list[tuple[int, str, Mapping[str, float]]] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.task = self.progress.add_task(f"{folder}: evaluating", total=config.steps)
        self.live = Live(self.progress, console=console, refresh_per_second=4) if live else None
        self.begun = time.perf_counter()

    def __enter__(self) -> View:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def show(self, event: str, data: Mapping[str, Any]) -> None:
        """One event of the run."""
        if event == "step":
            for name, value in data["metrics"].items():
                self.history.setdefault(name, []).append(value)
            self.progress.update(self.task, completed=data["step"] + 1, description=f"{self.folder}: training")
        elif event == "evaluated":
            means = {name: value.mean for name, value in summary(data["samples"]).items()}
            self.held_out.append((data["step"], data["name"], means))
        if self.live:
            self.live.update(Group(self._rewards(), self.progress))
        else:
            self._line(event, data)

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
            table.add_row(f"held-out {name or step}", "", shown)
        return table

    def _line(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "step":
            shown = {k: round(v, 4) for k, v in data["metrics"].items() if k in ("reward", "seconds") or k.startswith("reward.")}
            print(json.dumps({"step": data["step"] + 1, **shown}), file=self.console.file, flush=True)
        elif event == "evaluated":
            means = {k: round(v, 4) for k, v in self.held_out[-1][2].items()}
            print(json.dumps({"step": data["step"], "held-out": data["name"] or "on the way", **means}), file=self.console.file, flush=True)
