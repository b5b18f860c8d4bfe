"""Measures a step of `gotr1 train` by phase, beside an earlier commit, and what share of the run its evaluations take.

    python benchmarks/step.py --base cf5e2bb --steps 12

Two processes run the default preset, one with the code of this checkout and one with that of ``--base``. They take their steps in turn, so
that other load on the machine affects both. Each has one thread unless OMP_NUM_THREADS says otherwise. Printed are medians over the steps
after the first, the share of each phase, and the ratio of the two. ``forward`` has the passes of reference and policy, ``update`` backward
and optimizer. CPU time counts the process's own work and is steadier than wall-clock time where others run.

Both draw the same samples at first, so the weights after the first step are compared: they may differ by rounding.

The share of evaluations is arithmetic: the default run's steps and held-out samples, times what a step and a sample take here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gotr1_core import hookimpl

ROOT = Path(__file__).parent.parent
EVALUATED = 64  # held-out prompts: one batch
WORDS = (f"prompts.held_out={EVALUATED}", "evaluation={every: 0, greedy: false, best_of: 0}", "checkpoint={every: 1, keep: 1000}")
PHASES = ("rollout", "forward", "update")


class Contender:
    """A run that stops after its evaluation and after each step, until it is told to go on. Enter it to start it."""

    def __init__(self, name: str, code: Path, out: Path, words: list[str]) -> None:
        self.name, self.folder = name, out / name
        self.rows: list[dict[str, Any]] = []
        paths = [code, *sorted(code.glob("plugins/*/src"))]
        self.environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        self.command = [sys.executable, "-m", "gotr1_core.cli.main", "train", *WORDS, *words]
        self.code, self.out = code, out

    def plan(self) -> dict[str, Any]:
        """The config of the default run."""
        command = [sys.executable, "-m", "gotr1_core.cli.main", "train", "--dry-run", "--json"]
        text = subprocess.run(command, cwd=self.out, env=self.environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        return dict(json.loads(text)["config"])

    def __enter__(self) -> Contender:
        plugin = ["--plugin", str(Path(__file__).resolve()), f"output={self.out}", f"name={self.name}", "--cpu"]
        self.process = subprocess.Popen(
            [*self.command, *plugin], cwd=self.out, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def turn(self) -> None:
        """Lets the run go on, and waits until it stops again. The first turn waits until it has loaded."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self.rows:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.name} ended too early")
        self.rows.append(json.loads(line))

    def median(self, what: str) -> float:
        """The median over the steps after the first."""
        return statistics.median(row[what] for row in self.rows[3:])

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """What trains, as it was after a step."""
        return load_file(self.folder / "checkpoints" / f"step-{step:06d}" / "planner" / "trainable.safetensors")


def evaluations(config: Mapping[str, Any]) -> int:
    """How many held-out samples a run draws."""
    evaluation, held_out = config["evaluation"], config["prompts"]["held_out"]
    before = 1 + evaluation["greedy"] + (evaluation["best_of"] if evaluation["best_of"] > 1 else 0)
    on_the_way = (config["steps"] - 1) // evaluation["every"] if evaluation["every"] else 0
    return held_out * (before + 1) + on_the_way * min(evaluation["prompts"], held_out)


def table(base: Contender, here: Contender) -> str:
    """Markdown: seconds of each phase, their shares of the step, and ratios."""
    lines = [f"| phase | {base.name}, s | share | {here.name}, s | share | ratio |", "|---" * 6 + "|"]
    for name in (*PHASES, "forward and update", "step", "step, CPU time"):
        cells, medians = [], [contender.median(name) for contender in (base, here)]
        for contender, seconds in zip((base, here), medians, strict=True):
            share = "" if name == "step, CPU time" else f"{100 * seconds / contender.median('step'):.0f} %"
            cells.append(f"{seconds:.2f} | {share}")
        lines.append(f"| {name} | {' | '.join(cells)} | {medians[1] / medians[0]:.2f} |")
    return "\n".join(lines)


def share_of_evaluations(contender: Contender) -> str:
    """One line: how many held-out samples the default run draws, and what share of its time they take."""
    config = contender.plan()
    samples, per_sample = evaluations(config), contender.rows[1]["evaluation"] / EVALUATED
    evaluating, training = samples * per_sample, config["steps"] * contender.median("step")
    share = 100 * evaluating / (evaluating + training)
    return f"{contender.name}: {samples} held-out samples of {per_sample:.3f} s beside {config['steps']} steps: {share:.0f} % of the run"


def differences(base: Contender, here: Contender) -> str:
    """How far the weights after the first step differ, as a share of how far a step moves them."""
    first, other, later = base.weights(1), here.weights(1), base.weights(2)
    moved = torch.cat([(later[name] - first[name]).flatten() for name in first]).norm()
    apart = torch.cat([(other[name] - first[name]).flatten() for name in first])
    norm, largest = apart.norm() / moved, apart.abs().max()
    return f"weights after the first step: the difference has {norm:.1e} of the norm of a step, at most {largest:.1e} in one weight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="cf5e2bb", help="commit to compare with")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("build/step"))
    parser.add_argument("words", nargs="*", help="KEY=VALUE for both runs")
    args = parser.parse_args()
    out = (args.out / time.strftime("%Y%m%d-%H%M%S")).resolve()
    out.mkdir(parents=True)
    code = (args.out / f"code-{args.base}").resolve()
    if not code.is_dir():
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(code), args.base], check=True)
    words = [*args.words, f"steps={args.steps}"]
    with Contender(args.base, code, out, words) as base, Contender("here", ROOT, out, words) as here:
        for _ in range(args.steps + 2):
            base.turn()
            here.turn()
        print(table(base, here), "", differences(base, here), share_of_evaluations(base), share_of_evaluations(here), sep="\n")


# -- in the run -------------------------------------------------------------------------------------------------------------


class _Pace:
    """Measures what a run does between two stops."""

    begun = cpu = 0.0

    def stop(self, **row: float) -> None:
        print(json.dumps(row), flush=True)
        sys.stdin.readline()
        self.begun, self.cpu = time.perf_counter(), time.process_time()


_pace = _Pace()


@hookimpl
def gotr1_run_started() -> None:
    _pace.stop()


@hookimpl
def gotr1_evaluated(name: str) -> None:
    if name == "before":
        _pace.stop(evaluation=time.perf_counter() - _pace.begun)


@hookimpl
def gotr1_step_finished(metrics: Mapping[str, float]) -> None:
    earlier = {"forward": "scoring"}  # its name in earlier commits
    phases = {name: metrics.get(f"seconds.{name}", metrics.get(f"seconds.{earlier.get(name)}", 0.0)) for name in PHASES}
    whole = {"forward and update": phases["forward"] + phases["update"], "step": metrics["seconds"]}
    _pace.stop(**phases, **whole, **{"step, CPU time": time.process_time() - _pace.cpu})


if __name__ == "__main__":
    main()
