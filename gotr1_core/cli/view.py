"""The live view of a run: its step, its rewards with their trends, and the time left. Without a terminal, lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table

from gotr1_core.cli.terminal import EscapingConsole, progress_bars
from gotr1_core.cli.time_left import TimeLeft
from gotr1_core.engine.console import print
from gotr1_core.engine.intervals import known_mean
from gotr1_core.engine.rollout_metrics import COUNTED
from gotr1_core.evaluation import REWARD, change_label, paired, summary
from gotr1_core.hookspecs import hookimpl
from gotr1_core.pictures.sample_files import null_for_nan
from gotr1_core.runs.recorder import Run
from gotr1_core.runs.records import REPORT
from gotr1_core.runs.restore import find_checkpoint
from gotr1_core.samples import Sample

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
PHASES = ("rollout", "forward", "update")


def trend(values: list[float], width: int = 30, bars: str = BARS) -> str:
    """Returns a sparkline of the last ``width`` values, scaled to their own range, in ``bars`` from low to high. NaN is left out."""
    finite = [v for v in values[-width:] if v == v]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(bars[int((v - low) / (high - low or 1) * (len(bars) - 1))] for v in finite)


class View:
    """A listener that shows a run while it trains: ``live`` as a table, else a line of JSON for each event. Enter it before the run."""

    def __init__(self, console: Console, steps: int, *, live: bool) -> None:
        self.console = console
        self.history: dict[str, list[float]] = {}
        self.held_out: list[tuple[int, str, Mapping[str, float]]] = []
        self.evaluating: tuple[str, str, Mapping[str, float]] | None = None  # the evaluation under way, how far it is, means so far
        self.time_left = TimeLeft(steps)
        self.progress = progress_bars(console)
        self.task = self.progress.add_task("loading", total=steps, ends=None)
        self.bars = BARS if console.encoding.lower().startswith("utf") else ASCII_BARS
        self.live = Live(self.progress, console=console, refresh_per_second=4) if live else None

    def __enter__(self) -> View:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    @hookimpl
    def gotr1_run_started(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        self.time_left.started(self.progress.get_time(), config, step)
        self.progress.update(self.task, completed=step, description=f"{run}: training")
        self._show({"run": str(run), "step": step})

    @hookimpl
    def gotr1_step_finished(self, run: Path, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)
        self.time_left.stepped(self.progress.get_time(), step)
        ends = self.time_left.ends()
        self.progress.update(self.task, completed=step, description=f"{run}: training", ends=ends)
        rounded = {k: round(v, 4) for k, v in metrics.items() if k in ("reward", "seconds") or k.startswith(("reward.", *COUNTED))}
        self._show({"step": step, **rounded} | ({} if ends is None else {"seconds_left": max(0, round(ends - self.progress.get_time()))}))

    @hookimpl
    def gotr1_evaluating(self, run: Path, step: int, name: str, total: int, samples: Sequence[Sample]) -> None:
        if not samples:
            self.time_left.begun = self.progress.get_time()
        self.evaluating = f"{name}, step {step}", f"{len(samples)}/{total}", summary(samples) if samples else {}
        self.progress.update(self.task, description=f"{run}: evaluating")
        if self.live:
            self._show({})

    @hookimpl
    def gotr1_evaluated(self, run: Path, step: int, name: str, samples: Sequence[Sample]) -> None:
        means = summary(samples)
        self.evaluating = None
        self.time_left.evaluated(self.progress.get_time(), name, len(samples))
        self.progress.update(self.task, description=f"{run}: training", ends=self.time_left.ends())
        self.held_out.append((step, name, means))
        self._show({"step": step, "evaluation": name, **{k: round(v, 4) for k, v in means.items()}})

    @hookimpl
    def gotr1_checkpoint_saved(self, step: int, checkpoint: Path) -> None:
        self._show({"step": step, "checkpoint": str(checkpoint)})

    def _show(self, row: Mapping[str, Any]) -> None:
        """Updates the table of a live view; else prints the event as a line of JSON."""
        if self.live:
            self.live.update(Group(self._metrics(), self.progress), refresh=True)
        else:
            print(json.dumps({k: null_for_nan(v) for k, v in row.items()}), file=self.console.file, flush=True)

    def _metrics(self) -> Table:
        table = Table("", "now", "trend", box=None)
        for name in sorted(n for n in self.history if n.startswith("reward")):
            table.add_row(name, f"{self.history[name][-1]:.3f}", trend(self.history[name], bars=self.bars))
        for name in ("plan.sampler_gap", "image.sampler_gap", "gradient_norm"):
            if name in self.history:
                table.add_row(name, f"{self.history[name][-1]:.2g}", trend(self.history[name], bars=self.bars))
        for name in sorted(n for n in self.history if n.startswith(COUNTED)):
            asked = self.history.get(f"{name.removesuffix('hits')}asked", [0.0])[-1] if name.endswith(".cache_hits") else 0.0
            share = f"{self.history[name][-1] / asked:.0%} of the scores" if asked else ""
            table.add_row(name, f"{round(self.history[name][-1], 4):,.12g}", share)
        if "seconds" in self.history:
            phases = ", ".join(f"{p} {self.history[f'seconds.{p}'][-1]:.2f} s" for p in PHASES if f"seconds.{p}" in self.history)
            table.add_row("step", f"{self.history['seconds'][-1]:.2f} s", phases)
        evaluations = [(f"{name}, step {step}", "", means) for step, name, means in self.held_out[-4:]]
        for label, done, means in [*evaluations, *([self.evaluating] if self.evaluating else [])]:
            table.add_row(label, done, ", ".join(f"{n} {v:.3f}" for n, v in means.items()))
        return table


def training_view(steps: int) -> View:
    """Returns the view of a run in this process. It is live if stderr is a terminal and this is the first process."""
    return View(EscapingConsole(stderr=True), steps, live=sys.stderr.isatty() and os.environ.get("RANK", "0") == "0")


def show_result(run: Run, *, live: bool) -> None:
    """Prints the run's folder on stdout. After a ``live`` view, also held-out scores before and after, and where the results are."""
    if run.main:
        if live:
            _print_result(EscapingConsole(stderr=True), run)
        print(run.folder)


def _print_result(console: Console, run: Run) -> None:
    rows = run.records.held_out
    names = [REWARD, *(n for n in rows["before"] if n != REWARD)]
    columns = [Column(name, overflow="fold") for name in ("held-out", *names)]  # folded where a terminal is narrow, never cut
    table = Table(*columns, title=f"{len(rows['after'].prompts)} held-out prompts")
    for name, row in rows.items():
        table.add_row(name, *[f"{known_mean(row.column(n)):.3f}" for n in names])
    table.add_section()
    table.add_row(change_label(rows["before"], rows["after"]), *[paired(rows["before"], rows["after"], n).text("+") for n in names])
    console.print(table)
    _, best = find_checkpoint(run.folder)
    where = {"run": run.folder, "look": run.folder / REPORT, "best": best or "the untrained model", "pictures": run.folder / "samples"}
    draw = f'gotr1 generate "a red circle above a blue square" --checkpoint {run.folder}'
    for name, value in {**where, "draw": draw}.items():
        console.print(f"{name:<12}{value}", soft_wrap=True)
