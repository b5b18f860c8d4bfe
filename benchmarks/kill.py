"""Kills a run at random moments (SIGKILL), also while it writes a checkpoint, and checks that it resumes exactly every time.

    python benchmarks/kill.py --kills 50 --out build/kill

Trains the default preset, in a small size, once undisturbed and once with many kills. Then it compares weights, optimizer state and metrics
bit for bit. It prints at which moment each kill was.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gotr1_core.engine.files import read_lines
from gotr1_core.runs.checkpoint import CHECKPOINTS, MANIFEST, complete_checkpoints, find_damage

SMALL = ["groups=2", "plans=2", "prompts.held_out=2", "evaluation.prompts=2", "evaluation.every=7", "evaluation.greedy=false"]
SMALL += ["evaluation.best_of=0", "save_samples=5", "checkpoint.every=1", "constant_tolerance=0", "constant_groups=keep"]


def command(out: Path, name: str, steps: int) -> list[str]:
    """Returns the command that starts the run, or resumes it if its folder exists."""
    train = [sys.executable, "-m", "gotr1_core.cli.main", "train"]
    folder = out / name
    return [*train, "--resume", str(folder)] if folder.exists() else [*train, *SMALL, f"steps={steps}", f"output={out}", f"name={name}"]


def kill_once(out: Path, steps: int, rng: random.Random) -> str:
    """Starts or resumes the run and kills it at a random moment. Returns what it was doing, or ``finished`` if it ended before."""
    folder = out / "killed"
    process = subprocess.Popen(command(out, "killed", steps), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    if rng.random() < 0.15:  # while it starts
        time.sleep(rng.uniform(0, 6))
    else:
        for line in process.stderr:
            if line.startswith('{"run"'):
                break
        time.sleep(rng.uniform(0, 4))
        if rng.random() < 0.6:  # wait until a checkpoint is being written, and kill it then
            until = time.monotonic() + 10
            while time.monotonic() < until and process.poll() is None and not list((folder / CHECKPOINTS).glob("*.part")):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.25))
    if process.poll() is not None:
        rest = process.stderr.read()
        if process.returncode:
            sys.exit(f"a resumed run failed:\n{rest}")
        return "finished"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return "while it wrote a checkpoint" if list((folder / CHECKPOINTS).glob("*.part")) else "elsewhere"


def rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the metrics without those of time."""
    lines = [json.loads(line) for _, line in read_lines(folder / "metrics.jsonl", hint="start again")]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/kill"))
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    subprocess.run(command(args.out, "whole", args.steps), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rng, fell = random.Random(args.seed), Counter[str]()
    for number in range(args.kills):
        moment = kill_once(args.out, args.steps, rng)
        if moment == "finished":
            sys.exit(f"finished after {number} kills: give more --steps")
        fell[moment] += 1
        print(f"kill {number + 1}: {moment}, {max(complete_checkpoints(args.out / 'killed'), default=0)} steps are safe", flush=True)
    subprocess.run(command(args.out, "killed", args.steps), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    one, other = args.out / "whole", args.out / "killed"
    names = [path.name for path in complete_checkpoints(one).values()]
    same = names == [path.name for path in complete_checkpoints(other).values()]
    for name in names:
        same &= find_damage(other / CHECKPOINTS / name) is None
        same &= (one / CHECKPOINTS / name / MANIFEST).read_bytes() == (other / CHECKPOINTS / name / MANIFEST).read_bytes()
    same_metrics = rows(one) == rows(other) and (one / "held-out.json").read_bytes() == (other / "held-out.json").read_bytes()
    print(", ".join(f"{count} {moment}" for moment, count in fell.items()))
    print(f"checkpoints (weights, optimizer, state) equal bit for bit: {same}; metrics and held-out scores equal: {same_metrics}")
    sys.exit(not (same and same_metrics))


if __name__ == "__main__":
    main()
